"""The doctor's word on a shared store of artifacts."""

import sys
import threading
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from lensd_server.doctor import Finding, Verdict, store
from lensd_server.doctor.store import examine_store
from lensd_server.settings import ServerSettings, Settings


class ReadOnly(MemoryFileSystem):
    """A store whose credentials may not write."""

    protocol = "readonly"
    store: dict[str, Any] = {}  # noqa: RUF012 - as in the class it extends
    pseudo_dirs = [""]  # noqa: RUF012

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> Any:
        raise PermissionError("AccessDenied")


class Silent(ReadOnly):
    """A store that answers when the test is over."""

    protocol = "silent"
    over = threading.Event()

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> Any:
        type(self).over.wait()


@pytest.fixture(autouse=True)
def stores() -> Iterator[None]:
    for kind in (ReadOnly, Silent):
        fsspec.register_implementation(kind.protocol, kind, clobber=True)
    Silent.over = threading.Event()
    yield
    Silent.over.set()


def found(url: str) -> Finding:
    (finding,) = examine_store(Settings(server=ServerSettings(artifact_store=url)))
    return finding


def test_nothing_is_said_where_artifacts_are_in_the_state_folder() -> None:
    assert list(examine_store(Settings())) == []


def test_a_store_that_can_be_written_and_deleted_from_is_fine() -> None:
    finding = found("memory://doctor/lensd")
    assert (finding.verdict, finding.text) == (
        Verdict.FINE,
        "memory://…: a probe was written, read and deleted",
    )
    files: Any = fsspec.filesystem("memory")
    assert not files.exists("/doctor/lensd"), "looking must not make anything"


def test_a_store_that_may_not_be_written_is_broken_in_its_own_words() -> None:
    finding = found("readonly://bucket")
    assert finding.verdict is Verdict.BROKEN
    assert finding.text == "readonly://…: PermissionError: AccessDenied"
    assert "credentials" in finding.mend


def test_a_package_that_is_missing_comes_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    finding = found("s3://bucket/lensd")
    assert finding.verdict is Verdict.BROKEN
    assert finding.command == (sys.executable, "-m", "pip", "install", "s3fs")
    assert finding.mend.endswith("-m pip install s3fs")


def test_a_scheme_that_nobody_knows_is_broken_and_has_no_command() -> None:
    finding = found("nosuch://bucket")
    assert (finding.verdict, finding.command) == (Verdict.BROKEN, ())
    assert "unknown to fsspec" in finding.text


def test_a_store_that_never_answers_does_not_hold_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PATIENCE_S", 0.05)
    finding = found("silent://bucket")
    assert (finding.verdict, finding.text) == (
        Verdict.BROKEN,
        "silent://…: it did not answer within 0.05 s",
    )
