"""A full disk costs what needed the room, and says so; nothing half-written stays."""

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from lensd_api import Exhausted, LoadFailed
from lensd_server.engine.artifact_folder import FolderShelf
from lensd_server.engine.artifacts import Artifacts, Origin
from lensd_server.engine.checkpoints import DiskCheckpoints
from lensd_server.engine.disk import is_full
from lensd_server.engine.models.conversion import ConversionCache
from lensd_server.engine.models.digests import Digests
from lensd_server.engine.storage import BlockingArtifacts, BlockingCheckpoint

ROOM = 64 * 1024


@pytest.fixture
def little_room() -> Iterator[None]:
    """No file may grow beyond ROOM, as on a full disk: writing more fails in the kernel."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("little_room")
def test_an_artifact_without_room_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    store = BlockingArtifacts(Artifacts(FolderShelf(tmp_path)), Origin("lensd-probe", "fit", "1"))
    store.store("probe", {"x": b"small"})
    with pytest.raises(Exhausted, match="no room for artifact probe; nothing was stored") as refused:
        store.store("probe", {"x": bytes(2 * ROOM)})
    assert refused.value.reason == "DISK_FULL"
    assert [info.reference for info in store.list()] == ["probe@1"]
    assert not list(tmp_path.rglob(".writing-*"))


@pytest.mark.usefixtures("little_room")
def test_a_checkpoint_without_room_keeps_the_last_one_and_the_analysis(tmp_path: Path) -> None:
    checkpoint = BlockingCheckpoint(DiskCheckpoints(tmp_path, 4 * ROOM, kept=8), lambda: "key")
    checkpoint.save({"x": b"first"})
    checkpoint.save({"x": bytes(2 * ROOM)})
    assert checkpoint.load() == {"x": b"first"}
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


@pytest.mark.usefixtures("little_room")
def test_a_conversion_without_room_fails_the_load_and_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(b"GGUF")

    def convert(file: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(bytes(2 * ROOM))

    cache = ConversionCache(tmp_path / "converted", Digests(tmp_path / "digests"), convert)
    with pytest.raises(LoadFailed, match=r"server\.cache_dir\) has no room") as failed:
        cache.converted(source)
    assert failed.value.reason == "CACHE_FULL"
    assert [path for path in (tmp_path / "converted").iterdir() if path.is_dir()] == []


def test_a_digest_is_known_although_it_cannot_be_remembered(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    digests = Digests(tmp_path / "file" / "digests")
    assert digests.of_file(tmp_path / "file") == digests.of_file(tmp_path / "file")


def test_a_full_disk_is_known_in_whatever_words() -> None:
    assert is_full(OSError(errno.ENOSPC, "x"))
    assert is_full(
        RuntimeError(f"Error while serializing: I/O error: {os.strerror(errno.ENOSPC)} (os error 28)")
    )
    wrapped = ValueError("no")
    wrapped.__cause__ = OSError(errno.EDQUOT, "x")
    assert is_full(wrapped)
    assert not is_full(OSError(errno.EACCES, "x"))
