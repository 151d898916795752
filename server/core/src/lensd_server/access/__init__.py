"""Who calls, over what, and how much of it: identities, tokens, certificates, quotas, the audit log."""
