"""Tokens: shown once, kept as digests, found at once after a change."""

import json
import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lensd_api.errors import Unauthenticated
from lensd_server import cli
from lensd_server.access.caller import Scope
from lensd_server.access.identity import Authenticator
from lensd_server.access.tokens import TokenFileError, Tokens, issue_token, read_tokens, revoke_tokens
from lensd_server.settings import AuthSettings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "secrets" / "tokens"


def test_the_file_holds_digests_for_its_owner_only(file: Path) -> None:
    made = issue_token(file, "trainer", [Scope.READ, Scope.ANALYZE])
    assert made.startswith("lensd_")
    assert len(made) >= 40
    assert made not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (kept,) = read_tokens(file)
    assert (kept.name, kept.scopes) == ("trainer", (Scope.READ, Scope.ANALYZE))


def test_a_token_is_found_from_the_moment_it_is_made_until_it_is_revoked(file: Path) -> None:
    first = issue_token(file, "trainer", [Scope.ANALYZE])
    tokens = Tokens(file)
    assert tokens.find(first) is not None
    assert tokens.find("lensd_other") is None
    second = issue_token(file, "trainer", [])
    found = tokens.find(second)
    assert found is not None
    assert (found.name, found.scopes) == ("trainer", (Scope.ANALYZE,))
    assert tokens.find(first) is not None
    revoke_tokens(file, tokens.find(first).id)  # type: ignore[union-attr]
    assert tokens.find(first) is None
    assert tokens.find(second) is not None


def test_a_damaged_file_leaves_the_tokens_as_they_were(file: Path) -> None:
    made = issue_token(file, "a", [Scope.READ])
    tokens = Tokens(file)
    file.write_text("{not json\n")
    assert tokens.find(made) is not None
    file.unlink()
    assert tokens.find(made) is not None
    other = issue_token(file, "b", [Scope.READ])
    assert tokens.find(made) is None
    assert tokens.find(other) is not None


def test_comments_stay_and_owner_and_mode_too(file: Path) -> None:
    made = issue_token(file, "a", [Scope.READ])
    file.write_text("# made by hand\n\n" + file.read_text().rstrip("\n"))
    file.chmod(0o640)
    issue_token(file, "b", [Scope.ADMIN])
    revoke_tokens(file, "a")
    assert file.read_text().startswith("# made by hand\n\n")
    assert [token.name for token in read_tokens(file)] == ["b"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert os.listdir(file.parent) == ["tokens"]
    assert made not in file.read_text()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("secret-token-pasted-here", "line 1: not what"),
        ("[]", "line 1: not what"),
        (
            json.dumps({"name": "a", "sha256": "0" * 64, "scopes": ["root"], "created": ""}),
            "line 1: not what",
        ),
        (
            json.dumps({"name": "a", "sha256": "0" * 63, "scopes": ["read"], "created": ""}),
            "its name, sha256",
        ),
        (json.dumps({"name": "../a", "sha256": "0" * 64, "scopes": ["read"], "created": ""}), "its name"),
        (json.dumps({"name": "a", "sha256": "0" * 64, "scopes": [], "created": ""}), "its name, sha256"),
    ],
)
def test_a_line_that_is_none_is_refused_and_not_shown(file: Path, line: str, complaint: str) -> None:
    file.parent.mkdir()
    file.write_text(line + "\n")
    with pytest.raises(TokenFileError, match=complaint) as raised:
        Tokens(file)
    assert "secret" not in str(raised.value).replace(str(file), "")


def test_a_file_that_anybody_may_write_is_refused(file: Path) -> None:
    issue_token(file, "a", [Scope.READ])
    file.chmod(0o602)
    with pytest.raises(TokenFileError, match="chmod o-w"):
        Tokens(file)


def test_a_missing_file_says_what_makes_one(file: Path) -> None:
    with pytest.raises(TokenFileError, match="lensd token new"):
        Tokens(file)


def test_one_name_has_one_set_of_scopes(file: Path) -> None:
    issue_token(file, "a", [Scope.READ])
    with pytest.raises(TokenFileError, match="a has tokens for read"):
        issue_token(file, "a", [Scope.ADMIN])
    with pytest.raises(TokenFileError, match="say what b may do"):
        issue_token(file, "b", [])
    with pytest.raises(TokenFileError, match="no name for a token"):
        issue_token(file, "../b", [Scope.READ])
    with pytest.raises(TokenFileError, match="no token 'nobody'"):
        revoke_tokens(file, "nobody")


class TestCommand:
    """`lensd token`."""

    def run(self, *arguments: str) -> str:
        done = CliRunner().invoke(cli.main, ["token", *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    def test_new_prints_the_token_alone_and_list_does_not(self, file: Path) -> None:
        made = self.run(
            "--file", str(file), "new", "trainer", "--scope", "analyze", "--scope", "read"
        ).strip()
        assert Tokens(file).find(made) is not None
        listed = self.run("--file", str(file), "list")
        assert "trainer" in listed
        assert "read,analyze" in listed
        assert made not in listed
        assert "revoked" in self.run("--file", str(file), "revoke", "trainer")
        assert self.run("--file", str(file), "list") == ""

    def test_the_file_is_that_of_the_settings(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LENSD_AUTH__TOKEN_FILE", str(file))
        self.run("new", "a", "--scope", "read")
        assert [token.name for token in read_tokens(file)] == ["a"]

    def test_what_is_wrong_is_said(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(file.parent.parent)
        nowhere = CliRunner().invoke(cli.main, ["token", "list"])
        assert nowhere.exit_code == 2
        assert "token_file in [auth]" in nowhere.output
        missing = CliRunner().invoke(cli.main, ["token", "--file", str(file), "list"])
        assert missing.exit_code == 1
        assert "No such file" in missing.output


@given(
    headers=st.lists(
        st.one_of(st.text(), st.text().map(lambda text: f"Bearer {text}")), min_size=1, max_size=3
    )
)
def test_no_header_that_is_not_a_token_lets_anybody_in(
    headers: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzzed-tokens"
    if not file.exists():
        issue_token(file, "a", list(Scope))
    with pytest.raises(Unauthenticated):
        Authenticator(AuthSettings(token_file=file)).identify(headers, {"a"}, on_socket=True)
