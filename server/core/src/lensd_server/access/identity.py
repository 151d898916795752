"""From what a call shows to who sent it. Denies by default."""

import re
from collections.abc import Collection, Sequence

from lensd_api.errors import Unauthenticated
from lensd_server.access.audit import Audit
from lensd_server.access.caller import ANYBODY, LOCAL, Caller, Scope
from lensd_server.access.tokens import Tokens
from lensd_server.settings import AuthSettings

_BEARER = re.compile(r"bearer +(\S+)", re.IGNORECASE)


class Authenticator:
    """Knows callers by token, by certificate, or by the Unix socket that only they may open.

    A token that is shown decides alone: one that is not known is refused, whatever else there is.
    """

    def __init__(self, auth: AuthSettings, audit: Audit | None = None) -> None:
        """Raises TokenFileError."""
        self._required = auth.required
        self._tokens = None if auth.token_file is None else Tokens(auth.token_file, audit)
        self._by_certificate = _callers(auth)

    def identify(
        self, authorization: Sequence[str], certificate_names: Collection[str], *, on_socket: bool
    ) -> Caller:
        """Who it is. ``authorization`` are the headers of that name. Raises Unauthenticated."""
        if not self._required:
            return ANYBODY
        if authorization and self._tokens is not None:
            return self._by_token(authorization, self._tokens)
        for name, caller in self._by_certificate.items():
            if name in certificate_names:
                return caller
        if on_socket:
            return LOCAL
        if certificate_names and self._by_certificate:
            raise Unauthenticated(
                f"the certificate for {', '.join(sorted(certificate_names))} is valid, but [auth.certificates] of "
                "the server lists none of these names",
                reason="UNKNOWN_CERTIFICATE",
            )
        wanted = [
            *(["`authorization: Bearer TOKEN`"] if self._tokens is not None else []),
            *(["a client certificate"] if self._by_certificate else []),
        ]
        raise Unauthenticated(
            f"say who you are: this server wants {' or '.join(wanted)}", reason="NO_CREDENTIALS"
        )

    def take_over(self, auth: AuthSettings) -> None:
        """Scopes of certificates are those of ``auth`` from now on, and changed tokens are read again.

        Whether callers have to say who they are stays as it was at the start.
        """
        self._by_certificate = _callers(auth)
        if self._tokens is not None:
            self._tokens.refresh()

    def _by_token(self, authorization: Sequence[str], tokens: Tokens) -> Caller:
        shown = _BEARER.fullmatch(authorization[0].strip()) if len(authorization) == 1 else None
        if shown is None:
            raise Unauthenticated(
                "the authorization header must be there once and be `Bearer TOKEN`", reason="MALFORMED_TOKEN"
            )
        token = tokens.find(shown[1])
        if token is None:
            raise Unauthenticated(
                "the token is not known here: mistyped, revoked, or another server's", reason="UNKNOWN_TOKEN"
            )
        return Caller(token.name, frozenset(token.scopes))


def _callers(auth: AuthSettings) -> dict[str, Caller]:
    return {name: Caller(name, frozenset(map(Scope, scopes))) for name, scopes in auth.certificates.items()}
