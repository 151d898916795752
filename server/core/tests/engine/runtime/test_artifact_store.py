"""Storing and opening artifacts: whole or not at all, checked, and bound to what made them."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from lensd_api import Exhausted, FailedPrecondition, InvalidRequest, TooLarge, UnknownArtifact
from lensd_server.engine.artifact_folder import FolderShelf
from lensd_server.engine.artifact_remote import RemoteShelf
from lensd_server.engine.artifacts import Artifacts, Origin, Shelf

ORIGIN = Origin("lensd-probe", "fit", "0.1.0", "m", "a" * 64)
BLOBS = {"encoder.safetensors": b"\x00\x01weights", "concepts.json": b"[]"}


@pytest.fixture(params=["folder", "remote"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Shelf]:
    """Makes shelves of the same place, as daemons do."""
    if request.param == "folder":
        return lambda: FolderShelf(tmp_path / "artifacts")
    return lambda: RemoteShelf(f"file://{tmp_path}/artifacts")


@pytest.fixture
def store(shelf: Callable[[], Shelf]) -> Artifacts:
    return Artifacts(shelf(), max_bytes=4096, clock=lambda: 12.5)


def found(root: Path, name: str) -> Path:
    """The one file of that name: where it lies is the shelf's business."""
    (path,) = root.rglob(name)
    return path


def test_what_is_stored_is_opened_unchanged_and_described(store: Artifacts) -> None:
    info = store.store("probe", BLOBS, {"accuracy": 0.5}, ORIGIN)
    opened = store.open("probe", ORIGIN)
    assert opened.blobs == BLOBS
    assert opened.info == info == store.info("probe@1")
    assert (info.reference, info.created, info.size_bytes) == ("probe@1", 12.5, 11)
    assert (info.analyzer, info.analyzer_version, info.model) == ("fit", "0.1.0", "m")
    assert info.metadata == {"accuracy": 0.5}


def test_storing_again_makes_the_next_version_and_keeps_the_last(store: Artifacts) -> None:
    for content in (b"one", b"two"):
        store.store("probe", {"x": content}, None, ORIGIN)
    assert store.open("probe", ORIGIN).blobs == {"x": b"two"}
    assert store.open("probe@1", ORIGIN).blobs == {"x": b"one"}


def test_the_number_of_a_deleted_version_is_not_used_again(store: Artifacts) -> None:
    for _ in range(2):
        store.store("probe", BLOBS, None, ORIGIN)
    store.delete("probe@2")
    with pytest.raises(UnknownArtifact):
        store.open("probe@2", ORIGIN)
    assert store.store("probe", BLOBS, None, ORIGIN).version == 3


def test_another_process_finds_what_was_stored(store: Artifacts, shelf: Callable[[], Shelf]) -> None:
    store.store("probe", BLOBS, None, ORIGIN)
    assert Artifacts(shelf()).open("probe", ORIGIN).blobs == BLOBS


def test_processes_that_store_at_once_get_versions_of_their_own(shelf: Callable[[], Shelf]) -> None:
    def put(number: int) -> int:
        return Artifacts(shelf()).store("probe", {"x": bytes([number])}, None, ORIGIN).version

    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(put, range(12)))
    assert sorted(versions) == list(range(1, 13))
    store = Artifacts(shelf())
    assert [store.open(f"probe@{v}", ORIGIN).blobs["x"][0] for v in versions] == list(range(12))


def test_a_deleted_version_leaves_no_blob(store: Artifacts, tmp_path: Path) -> None:
    store.store("probe", BLOBS, None, ORIGIN)
    store.delete("probe@1")
    assert not store.list()
    assert not list(tmp_path.rglob("concepts.json"))


def test_equal_contents_have_one_digest_and_other_metadata_another(store: Artifacts) -> None:
    one, two, three = (
        store.store("p", BLOBS, metadata, ORIGIN) for metadata in ({"a": 1}, {"a": 1}, {"a": 2})
    )
    assert one.sha256 == two.sha256 != three.sha256


@pytest.mark.parametrize("blob", sorted(BLOBS))
def test_a_changed_blob_is_refused(store: Artifacts, tmp_path: Path, blob: str) -> None:
    store.store("probe", BLOBS, None, ORIGIN)
    path = found(tmp_path, blob)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(FailedPrecondition, match="damaged") as refused:
        store.open("probe", ORIGIN)
    assert refused.value.reason == "ARTIFACT_CORRUPT"


def test_a_missing_blob_and_a_changed_description_are_refused(store: Artifacts, tmp_path: Path) -> None:
    for name in ("lost", "told"):
        store.store(name, BLOBS, {"accuracy": 0.5}, ORIGIN)
    found(tmp_path / "artifacts" / "lost", "concepts.json").unlink()
    told = tmp_path / "artifacts" / "told"
    described = next(path for path in (told / "1" / "info.json", told / "1.json") if path.exists())
    described.write_text(json.dumps(json.loads(described.read_text()) | {"metadata": {"accuracy": 0.9}}))
    for name in ("lost", "told"):
        with pytest.raises(FailedPrecondition) as refused:
            store.open(name, ORIGIN)
        assert refused.value.reason == "ARTIFACT_CORRUPT"


def test_another_models_artifact_is_refused_with_both_revisions(store: Artifacts) -> None:
    store.store("probe", BLOBS, None, ORIGIN)
    with pytest.raises(FailedPrecondition, match=r"aaaaaaaaaaaa.*bbbbbbbbbbbb") as refused:
        store.open("probe", replace(ORIGIN, revision="b" * 64))
    assert refused.value.reason == "ARTIFACT_OF_ANOTHER_MODEL"


@pytest.mark.parametrize(("version", "fits"), [("0.1.9", True), ("0.2.0", False), ("1.1.0", False)])
def test_only_the_last_number_of_a_plugins_version_may_differ(
    store: Artifacts, version: str, fits: bool
) -> None:
    store.store("probe", BLOBS, None, ORIGIN)
    opener = replace(ORIGIN, analyzer="read", version=version)
    if fits:
        assert store.open("probe", opener).blobs == BLOBS
        return
    with pytest.raises(FailedPrecondition) as refused:
        store.open("probe", opener)
    assert refused.value.reason == "ARTIFACT_OF_ANOTHER_VERSION"


def test_too_much_is_refused_and_nothing_is_left(store: Artifacts, tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match=r"5000 bytes.*4096.*max_artifact_bytes"):
        store.store("probe", {"x": bytes(5000)}, None, ORIGIN)
    assert not store.list()
    assert not list(tmp_path.rglob("x"))


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a@1", "a" * 129])
def test_no_name_is_a_path(store: Artifacts, name: str) -> None:
    with pytest.raises(InvalidRequest):
        store.store(name, BLOBS, None, ORIGIN)
    with pytest.raises(InvalidRequest):
        store.store("probe", {name: b""}, None, ORIGIN)
    assert not store.list()


def test_metadata_that_is_not_json_stores_nothing(store: Artifacts) -> None:
    for wrong in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises((ValueError, TypeError)):
            store.store("probe", BLOBS, wrong, ORIGIN)
    assert not store.list()


def test_a_half_written_version_is_no_version(store: Artifacts, tmp_path: Path) -> None:
    for half in (".writing-dead", "blobs-dead"):
        folder = tmp_path / "artifacts" / "probe" / half
        (folder / "blobs").mkdir(parents=True)
        (folder / "info.json").write_text("{}")
    assert not store.list()
    assert store.store("probe", BLOBS, None, ORIGIN).version == 1


@pytest.fixture
def bounded(shelf: Callable[[], Shelf]) -> Artifacts:
    return Artifacts(shelf(), max_bytes=4096, max_bytes_together=6000)


def test_all_artifacts_together_are_bounded_whatever_their_names(bounded: Artifacts) -> None:
    bounded.store("one", {"x": bytes(3000)}, None, ORIGIN)
    with pytest.raises(
        Exhausted, match=r"would take 40\d\d bytes.* of the 6000 .*max_artifacts_bytes"
    ) as refused:
        bounded.store("other", {"x": bytes(4000)}, None, ORIGIN)
    assert refused.value.reason == "ARTIFACTS_FULL"
    assert refused.value.metadata["limit"] == "6000"
    assert [info.reference for info in bounded.list()] == ["one@1"]
    bounded.delete("one@1")
    bounded.store("other", {"x": bytes(4000)}, None, ORIGIN)


def test_what_was_there_before_counts(bounded: Artifacts, shelf: Callable[[], Shelf]) -> None:
    Artifacts(shelf()).store("old", {"x": bytes(4000)}, None, ORIGIN)
    with pytest.raises(Exhausted, match="artifact new"):
        bounded.store("new", {"x": bytes(3000)}, None, ORIGIN)


def test_an_artifact_that_could_not_be_written_takes_no_room(
    bounded: Artifacts, shelf: Callable[[], Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(shelf())
    with monkeypatch.context() as broken:
        broken.setattr(kind, "put", Failing.put)
        for _ in range(3):
            with pytest.raises(OSError, match="no"):
                bounded.store("probe", {"x": bytes(4000)}, None, ORIGIN)
    bounded.store("probe", {"x": bytes(4000)}, None, ORIGIN)


class Failing:
    """A shelf that cannot be written."""

    def put(self, *_: object) -> int:
        raise OSError("no")


def test_those_that_store_at_once_share_what_room_there_is(bounded: Artifacts) -> None:
    def store(number: int) -> bool:
        try:
            bounded.store(f"n{number}", {"x": bytes(2000)}, None, ORIGIN)
        except Exhausted:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert 1 <= sum(pool.map(store, range(8))) <= 2
