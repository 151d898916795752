"""The doctor's word on certificates, tokens and sockets."""

from pathlib import Path
from typing import Any

import pytest

from lensd_server.access.caller import Scope
from lensd_server.access.tokens import issue_token, revoke_tokens
from lensd_server.doctor import Verdict
from lensd_server.doctor.places import examine_places
from lensd_server.doctor.protection import examine_protection
from lensd_server.settings import AuthSettings, ServerSettings, Settings, TlsSettings


def test_where_nothing_is_protected_nothing_is_said() -> None:
    assert list(examine_protection(Settings())) == []


@pytest.mark.parametrize(
    ("days", "verdict", "text"),
    [(100, Verdict.FINE, "valid until"), (5, Verdict.NOTE, "4 days"), (0.01, Verdict.BROKEN, "expired")],
)
def test_a_certificate_is_read_and_its_time_looked_at(
    authority: Any, days: float, verdict: Verdict, text: str
) -> None:
    pair = authority.issue("server", days=days)
    (found,) = examine_protection(Settings(tls=TlsSettings(cert=pair.cert, key=pair.key)))
    assert found.verdict is verdict
    assert text in found.text


def test_a_key_that_does_not_fit_is_found(authority: Any) -> None:
    one, two = authority.issue("one"), authority.issue("two")
    (found,) = examine_protection(Settings(tls=TlsSettings(cert=one.cert, key=two.key)))
    assert found.verdict is Verdict.BROKEN
    assert "is not the key of" in found.text


def test_tokens_are_counted_by_name(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    settings = Settings(auth=AuthSettings(token_file=file))
    (missing,) = examine_protection(settings)
    assert missing.verdict is Verdict.BROKEN
    assert "lensd token new" in missing.mend
    issue_token(file, "trainer", [Scope.READ])
    (found,) = examine_protection(settings)
    assert (found.verdict, found.text.endswith(": trainer")) == (Verdict.FINE, True)
    revoke_tokens(file, "trainer")
    (none,) = examine_protection(settings)
    assert none.verdict is Verdict.NOTE


def test_a_sockets_folder_has_to_be_there(tmp_path: Path) -> None:
    def verdict(path: Path) -> Verdict:
        server = ServerSettings(
            listen="127.0.0.1:0",
            admin_listen=f"unix:{path}",
            metrics_listen="127.0.0.1:0",
            state_dir=tmp_path,
            cache_dir=tmp_path,
        )
        found = {f.what: f for f in examine_places(Settings(server=server))}
        return found["server.admin_listen"].verdict

    assert verdict(tmp_path / "admin.sock") is Verdict.FINE
    assert verdict(tmp_path / "none" / "admin.sock") is Verdict.BROKEN
