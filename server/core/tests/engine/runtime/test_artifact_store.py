"""Storing and opening artifacts: whole or not at all, checked, and bound to what made them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lensd_api import FailedPrecondition, InvalidRequest, TooLarge, UnknownArtifact
from lensd_server.engine.artifacts import DiskArtifacts, Origin

ORIGIN = Origin("lensd-probe", "fit", "0.1.0", "m", "a" * 64)
BLOBS = {"encoder.safetensors": b"\x00\x01weights", "concepts.json": b"[]"}


@pytest.fixture
def store(tmp_path: Path) -> DiskArtifacts:
    return DiskArtifacts(tmp_path / "artifacts", max_bytes=4096, clock=lambda: 12.5)


def test_what_is_stored_is_opened_unchanged_and_described(store: DiskArtifacts) -> None:
    info = store.store("probe", BLOBS, {"accuracy": 0.5}, ORIGIN)
    opened = store.open("probe", ORIGIN)
    assert opened.blobs == BLOBS
    assert opened.info == info == store.info("probe@1")
    assert (info.reference, info.created, info.size_bytes) == ("probe@1", 12.5, 11)
    assert (info.analyzer, info.analyzer_version, info.model) == ("fit", "0.1.0", "m")
    assert info.metadata == {"accuracy": 0.5}


def test_storing_again_makes_the_next_version_and_keeps_the_last(store: DiskArtifacts) -> None:
    for content in (b"one", b"two"):
        store.store("probe", {"x": content}, None, ORIGIN)
    assert store.open("probe", ORIGIN).blobs == {"x": b"two"}
    assert store.open("probe@1", ORIGIN).blobs == {"x": b"one"}


def test_the_number_of_a_deleted_version_is_not_used_again(store: DiskArtifacts) -> None:
    for _ in range(2):
        store.store("probe", BLOBS, None, ORIGIN)
    store.delete("probe@2")
    with pytest.raises(UnknownArtifact):
        store.open("probe@2", ORIGIN)
    assert store.store("probe", BLOBS, None, ORIGIN).version == 3


def test_another_process_finds_what_was_stored(store: DiskArtifacts, tmp_path: Path) -> None:
    store.store("probe", BLOBS, None, ORIGIN)
    assert DiskArtifacts(tmp_path / "artifacts").open("probe", ORIGIN).blobs == BLOBS


def test_equal_contents_have_one_digest_and_other_metadata_another(store: DiskArtifacts) -> None:
    one, two, three = (
        store.store("p", BLOBS, metadata, ORIGIN) for metadata in ({"a": 1}, {"a": 1}, {"a": 2})
    )
    assert one.sha256 == two.sha256 != three.sha256


@pytest.mark.parametrize("blob", sorted(BLOBS))
def test_a_changed_blob_is_refused(store: DiskArtifacts, tmp_path: Path, blob: str) -> None:
    store.store("probe", BLOBS, None, ORIGIN)
    path = tmp_path / "artifacts" / "probe" / "1" / "blobs" / blob
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(FailedPrecondition, match="damaged") as refused:
        store.open("probe", ORIGIN)
    assert refused.value.reason == "ARTIFACT_CORRUPT"


def test_a_missing_blob_and_a_changed_description_are_refused(store: DiskArtifacts, tmp_path: Path) -> None:
    for name in ("lost", "told"):
        store.store(name, BLOBS, {"accuracy": 0.5}, ORIGIN)
    (tmp_path / "artifacts" / "lost" / "1" / "blobs" / "concepts.json").unlink()
    described = tmp_path / "artifacts" / "told" / "1" / "info.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"metadata": {"accuracy": 0.9}}))
    for name in ("lost", "told"):
        with pytest.raises(FailedPrecondition) as refused:
            store.open(name, ORIGIN)
        assert refused.value.reason == "ARTIFACT_CORRUPT"


def test_another_models_artifact_is_refused_with_both_revisions(store: DiskArtifacts) -> None:
    store.store("probe", BLOBS, None, ORIGIN)
    with pytest.raises(FailedPrecondition, match=r"aaaaaaaaaaaa.*bbbbbbbbbbbb") as refused:
        store.open("probe", replace(ORIGIN, revision="b" * 64))
    assert refused.value.reason == "ARTIFACT_OF_ANOTHER_MODEL"


@pytest.mark.parametrize(("version", "fits"), [("0.1.9", True), ("0.2.0", False), ("1.1.0", False)])
def test_only_the_last_number_of_a_plugins_version_may_differ(
    store: DiskArtifacts, version: str, fits: bool
) -> None:
    store.store("probe", BLOBS, None, ORIGIN)
    opener = replace(ORIGIN, analyzer="read", version=version)
    if fits:
        assert store.open("probe", opener).blobs == BLOBS
        return
    with pytest.raises(FailedPrecondition) as refused:
        store.open("probe", opener)
    assert refused.value.reason == "ARTIFACT_OF_ANOTHER_VERSION"


def test_too_much_is_refused_and_nothing_is_left(store: DiskArtifacts, tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match=r"5000 bytes.*4096.*max_artifact_bytes"):
        store.store("probe", {"x": bytes(5000)}, None, ORIGIN)
    assert not store.list()
    assert not list(tmp_path.rglob("x"))


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a@1", "a" * 129])
def test_no_name_is_a_path(store: DiskArtifacts, name: str) -> None:
    with pytest.raises(InvalidRequest):
        store.store(name, BLOBS, None, ORIGIN)
    with pytest.raises(InvalidRequest):
        store.store("probe", {name: b""}, None, ORIGIN)
    assert not store.list()


def test_metadata_that_is_not_json_stores_nothing(store: DiskArtifacts) -> None:
    for wrong in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises((ValueError, TypeError)):
            store.store("probe", BLOBS, wrong, ORIGIN)
    assert not store.list()


def test_a_half_written_version_is_no_version(store: DiskArtifacts, tmp_path: Path) -> None:
    half = tmp_path / "artifacts" / "probe" / ".writing-dead"
    (half / "blobs").mkdir(parents=True)
    (half / "info.json").write_text("{}")
    assert not store.list()
    assert store.store("probe", BLOBS, None, ORIGIN).version == 1
