"""A folder is claimed while a daemon lives, and swept of what a killed one left."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lensd_server import folders
from lensd_server.folders import Unusable, claim


def leave(root: Path) -> list[Path]:
    """What a process killed while it wrote leaves behind, one of each kind."""
    artifact = root / "artifacts" / "probe" / ".writing-abc"
    (artifact / "blobs").mkdir(parents=True)
    (artifact / "blobs" / "x").write_bytes(b"half")
    checkpoint = root / "checkpoints" / ".writing-def"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"half")
    conversion = root / "converted" / ".converting-sha-1"
    conversion.mkdir(parents=True)
    deleted = root / "artifacts" / "probe" / ".3.deleted" / "info.json"
    deleted.parent.mkdir()
    deleted.write_text("{}")
    return [artifact, checkpoint, conversion, deleted]


def test_what_a_killed_process_left_is_gone_and_nothing_else(tmp_path: Path) -> None:
    left = leave(tmp_path)
    whole = tmp_path / "artifacts" / "probe" / "2" / "info.json"
    whole.parent.mkdir()
    whole.write_text("{}")
    with claim(tmp_path, "server.state_dir") as swept:
        assert set(swept) == set(left)
    assert not any(path.exists() for path in left)
    assert whole.exists()
    assert (tmp_path / "artifacts" / "probe" / ".3.deleted").is_dir(), "the number stays taken"


@pytest.fixture
def other_daemon(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that has claimed the folder; it lets go when its input ends."""
    code = (
        "import sys; from pathlib import Path; from lensd_server.folders import claim\n"
        "with claim(Path(sys.argv[1]), 'x'): print('claimed', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "claimed\n":
                break
        yield process
        process.kill()


def test_what_a_living_daemon_writes_is_left_alone(
    tmp_path: Path, other_daemon: "subprocess.Popen[str]"
) -> None:
    left = leave(tmp_path)
    with claim(tmp_path, "server.state_dir") as swept:
        assert swept == ()
    assert all(path.exists() for path in left)
    other_daemon.kill()
    other_daemon.wait()
    with claim(tmp_path, "server.state_dir") as swept:
        assert set(swept) == set(left), "a killed daemon holds no lock"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused_with_its_setting(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(Unusable, match=r"server\.state_dir.*cannot be written.*make it writable"):
        with claim(tmp_path / "state", "server.state_dir"):
            pass


def test_a_file_in_the_way_is_refused_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unusable, match=r"server\.state_dir.*cannot be written"):
        with claim(tmp_path / "file" / "state", "server.state_dir"):
            pass


def test_a_full_disk_is_no_reason_not_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "_write_probe", full)
    with claim(tmp_path, "server.state_dir") as swept:
        assert swept == ()
