"""What an operator watches the daemon with: dashboards, rules, alerts and their runbook, as code.

Everything here is made from :mod:`lensd_server.telemetry.definitions`; what ``lensd dashboards``
writes is what the repository keeps in ``server/deploy``.
"""
