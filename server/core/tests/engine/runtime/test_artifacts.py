"""Reading a folder of artifacts that may hold anything."""

import json
from pathlib import Path

import pytest

from lensd_api import UnknownArtifact
from lensd_server.engine.artifact_folder import FolderShelf
from lensd_server.engine.artifacts import Artifacts


def put(root: Path, name: str, version: int, /, **changes: object) -> None:
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    info = {
        "name": name,
        "version": version,
        "analyzer": "probe",
        "analyzer_version": "1",
        "model": "m",
        "model_revision": "0" * 64,
        "sha256": "1" * 64,
        "size_bytes": 3,
        "created": 1.0,
        "metadata": {},
    }
    (folder / "info.json").write_text(json.dumps(info | changes))


def test_a_folder_that_does_not_exist_holds_nothing(tmp_path: Path) -> None:
    assert Artifacts(FolderShelf(tmp_path / "no")).list() == []


def test_the_bare_name_means_the_newest(tmp_path: Path) -> None:
    for version in (1, 10, 9):
        put(tmp_path, "probe", version)
    put(tmp_path, "alpha", 1)
    store = Artifacts(FolderShelf(tmp_path))
    assert [(info.name, info.version) for info in store.list()] == [
        ("alpha", 1),
        ("probe", 10),
        ("probe", 9),
        ("probe", 1),
    ]
    assert store.info("probe").version == 10
    assert store.info("probe@9").version == 9


@pytest.mark.parametrize("name", ["no", "probe@2", "probe@x", "", "../probe", "probe/1", "/etc", "a" * 500])
def test_what_is_not_there_is_unknown_and_no_name_is_a_path(tmp_path: Path, name: str) -> None:
    root = tmp_path / "store"
    put(root, "probe", 1)
    put(tmp_path, "probe", 7)
    with pytest.raises(UnknownArtifact):
        Artifacts(FolderShelf(root)).info(name)


def test_what_is_damaged_or_misnamed_is_left_out(tmp_path: Path) -> None:
    put(tmp_path, "good", 1)
    put(tmp_path, "liar", 1, name="good")
    put(tmp_path, "wrong", 1, size_bytes="many")
    (tmp_path / "empty" / "1").mkdir(parents=True)
    assert [info.name for info in Artifacts(FolderShelf(tmp_path)).list()] == ["good"]
