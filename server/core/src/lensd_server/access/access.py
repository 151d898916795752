"""All that decides about callers, made from the settings."""

from dataclasses import dataclass, field

from lensd_server.access.audit import Audit
from lensd_server.access.certificates import Certificates
from lensd_server.access.identity import Authenticator
from lensd_server.access.quotas import Quotas
from lensd_server.settings import AuthSettings, QuotaSettings, Settings


@dataclass(frozen=True, slots=True)
class Access:
    """Shared by both listeners. The defaults let anybody in, as on a machine of one's own."""

    authenticator: Authenticator = field(default_factory=lambda: Authenticator(AuthSettings()))
    quotas: Quotas = field(default_factory=lambda: Quotas(QuotaSettings()))
    certificates: Certificates | None = None
    audit: Audit = field(default_factory=Audit)
    open_health: bool = True

    @classmethod
    def of(cls, settings: Settings) -> "Access":
        """Raises TokenFileError or CertificateError."""
        audit = Audit()
        return cls(
            Authenticator(settings.auth, audit),
            Quotas(settings.quota),
            Certificates.of(settings.tls),
            audit,
            open_health=settings.auth.open_health,
        )

    def take_over(self, settings: Settings) -> None:
        """Certificates' scopes and quotas are those of ``settings`` from now on; changed files are read again."""
        self.authenticator.take_over(settings.auth)
        self.quotas.take_over(settings.quota)
        if self.certificates is not None:
            self.certificates.refresh()
