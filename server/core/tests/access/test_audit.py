"""The audit: written at any log level, bounded in a flood, kept in a file of its own."""

import io
import json
import logging
import re
from pathlib import Path

import pytest
import structlog

from lensd_api.errors import Unauthenticated
from lensd_server.access.audit import LOGGER, Audit
from lensd_server.access.caller import Scope
from lensd_server.access.tokens import Tokens, issue_token, revoke_tokens
from lensd_server.telemetry.logging import AuditFile, configure_logging, keep_audit

pytestmark = pytest.mark.usefixtures("restored_audit")


def act(audit: Audit, subject: str = "tiny") -> None:
    audit.acted(
        caller="ops", peer="ipv4:127.0.0.1:1", method="/lensd.v1.ModelService/LoadModel",
        subject=subject, code="OK",
    )  # fmt: skip


def refuse(audit: Audit) -> None:
    error = Unauthenticated("who?", reason="NO_CREDENTIALS")
    audit.refused(caller="", peer="ipv4:10.0.0.1:1", method="/m", error=error)


def test_it_is_written_whatever_the_log_level_and_to_its_file(tmp_path: Path) -> None:
    out, file = io.StringIO(), tmp_path / "audit.jsonl"
    configure_logging(stream=out, level="error")
    keep_audit(file)
    act(Audit())
    structlog.get_logger("lensd.other").info("not worth it")
    (logged,) = map(json.loads, out.getvalue().splitlines())
    (kept,) = map(json.loads, file.read_text().splitlines())
    assert logged == kept
    assert (kept["caller"], kept["subject"], kept["code"]) == ("ops", "tiny", "OK")
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_file_that_was_moved_away_is_made_anew_and_none_is_cut_short(tmp_path: Path) -> None:
    configure_logging(stream=io.StringIO())
    file = tmp_path / "audit.jsonl"
    file.write_text("from before\n")
    keep_audit(file)
    act(Audit(), "one")
    file.rename(tmp_path / "audit.jsonl.1")
    act(Audit(), "two")
    assert (tmp_path / "audit.jsonl.1").read_text().startswith("from before\n")
    assert json.loads(file.read_text())["subject"] == "two"


def test_a_file_that_is_made_anew_is_for_its_owner_too(tmp_path: Path) -> None:
    configure_logging(stream=io.StringIO())
    file = tmp_path / "audit.jsonl"
    keep_audit(file)
    file.unlink()
    act(Audit())
    assert file.stat().st_mode & 0o777 == 0o600


def test_while_the_file_cannot_be_written_lines_are_counted_and_the_log_says_so_once_a_minute(
    tmp_path: Path,
) -> None:
    out, now, lost = io.StringIO(), 100.0, 0

    def lose() -> None:
        nonlocal lost
        lost += 1

    configure_logging(stream=out)
    folder = tmp_path / "audit"
    folder.mkdir()
    handler = AuditFile(folder / "audit.jsonl", lose, clock=lambda: now)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger(LOGGER).addHandler(handler)
    audit = Audit()
    folder.rename(tmp_path / "elsewhere")
    for _ in range(3):
        act(audit)
    now += 61.0
    act(audit)
    assert lost == 4
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["event"] for line in lines].count("admin call") == 4, "the log has what the file has not"
    told = [line for line in lines if line["event"] == "the audit cannot be written"]
    assert [line["lost"] for line in told] == [1, 4]
    assert "FileNotFoundError" in told[0]["problem"]

    folder.mkdir()
    act(audit)
    act(audit)
    assert lost == 4
    assert len((folder / "audit.jsonl").read_text().splitlines()) == 2
    again = [line for line in map(json.loads, out.getvalue().splitlines()) if "again" in line["event"]]
    assert [line["lost"] for line in again] == [4]


def test_who_may_call_is_written_when_the_token_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    first = issue_token(file, "trainer", [Scope.ANALYZE])
    tokens = Tokens(file)
    with structlog.testing.capture_logs() as lines:
        assert tokens.find(first) is not None
        second = issue_token(file, "ops", [Scope.ADMIN, Scope.READ])
        assert tokens.find(second) is not None
        revoke_tokens(file, "trainer")
        assert tokens.find(first) is None
        file.write_text(first)
        assert tokens.find(second) is not None
    added, removed, refused = lines
    assert {line["caller"] for line in lines} == {f"file {file}"}
    (came,), (went,) = added["added"], removed["removed"]
    assert re.fullmatch(r"ops [0-9a-f]{12} \(read, admin\)", came)
    assert re.fullmatch(r"trainer [0-9a-f]{12} \(analyze\)", went)
    assert (added["removed"], removed["added"]) == ([], [])
    assert "line 1: not what" in refused["problem"]
    assert first not in str(lines)
    assert second not in str(lines)


def test_reloads_are_written_whatever_the_log_level(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    configure_logging(stream=io.StringIO(), level="error")
    keep_audit(file)
    Audit().reloaded(applied=("quota.max_analyses",), needs_restart=())
    Audit().reload_refused("quota.max_analyses: no")
    read, refused = map(json.loads, file.read_text().splitlines())
    assert read["caller"] == refused["caller"] == "signal SIGHUP"
    assert read["applied"] == ["quota.max_analyses"]
    assert refused["problem"] == "quota.max_analyses: no"


def test_a_flood_of_refusals_is_counted_rather_than_written() -> None:
    now = 1.0
    audit = Audit(clock=lambda: now)
    with structlog.testing.capture_logs() as lines:
        for _ in range(100):
            refuse(audit)
        assert len(lines) == 20
        now = 2.0
        refuse(audit)
    assert lines[-1]["left_out_before"] == 80
    assert lines[-1]["caller"] == "ipv4:10.0.0.1:1"
