"""Certificates and tokens: there, fitting, and not about to expire."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from lensd_server.access.certificates import CertificateError, Certificates
from lensd_server.access.tokens import TokenFileError, read_tokens
from lensd_server.doctor.finding import Finding, Verdict
from lensd_server.settings import AuthSettings, Settings, TlsSettings

#: Before this much is left somebody should have replaced it.
_SOON = timedelta(days=14)


def examine_protection(settings: Settings) -> Iterator[Finding]:
    """What [tls] and [auth] name; nothing where they name nothing."""
    yield from _certificate(settings.tls)
    yield from _tokens(settings.auth)


def _certificate(tls: TlsSettings) -> Iterator[Finding]:
    what = "certificate"
    try:
        certificates = Certificates.of(tls)
    except CertificateError as error:
        yield Finding(what, Verdict.BROKEN, str(error), "put a certificate and its key there, both in PEM")
        return
    if certificates is None:
        return
    left = certificates.not_after - datetime.now(UTC)
    text = f"{tls.cert}, valid until {certificates.not_after:%Y-%m-%d %H:%M} UTC"
    if left <= timedelta():
        yield Finding(
            what, Verdict.BROKEN, f"{text}: expired", "replace it; a running daemon reads it by itself"
        )
    elif left < _SOON:
        yield Finding(what, Verdict.NOTE, f"{text}: {left.days} days", "replace it soon")
    else:
        yield Finding(what, Verdict.FINE, text)


def _tokens(auth: AuthSettings) -> Iterator[Finding]:
    if auth.token_file is None:
        return
    what = "tokens"
    try:
        tokens = read_tokens(auth.token_file)
    except TokenFileError as error:
        yield Finding(what, Verdict.BROKEN, str(error), "lensd token new NAME --scope analyze --scope read")
        return
    if tokens:
        names = ", ".join(sorted({token.name for token in tokens}))
        yield Finding(what, Verdict.FINE, f"{auth.token_file}: {names}")
    else:
        yield Finding(
            what, Verdict.NOTE, f"{auth.token_file} has none: nobody can call", "lensd token new NAME"
        )
