"""A shared store: what is asked of it, and what happens when it does not answer."""

import sys
import uuid
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from lensd_api import Unavailable, UnknownArtifact
from lensd_server.engine.artifact_remote import RemoteShelf, WrongStore, scheme_of
from lensd_server.engine.artifacts import Artifacts, Origin

ORIGIN = Origin("lensd-probe", "fit", "0.1.0", "m", "a" * 64)
BLOBS = {"x": b"1"}


class Broken(MemoryFileSystem):
    """A store whose calls fail once ``down`` is set, with an exception of its library's own."""

    protocol = "broken"
    store: dict[str, Any] = {}  # noqa: RUF012 - as in the class it extends
    pseudo_dirs = [""]  # noqa: RUF012
    down = False
    creates = True

    def _answer(self) -> None:
        if type(self).down:
            raise RuntimeError("connection reset, secret=hunter2")

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        self._answer()
        return super().ls(path, detail=detail, **kwargs)

    def cat_file(self, *args: Any, **kwargs: Any) -> bytes:
        self._answer()
        return super().cat_file(*args, **kwargs)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> Any:
        self._answer()
        return super().pipe_file(path, value, mode=mode, **kwargs)

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if "x" in mode and not type(self).creates:
            raise NotImplementedError
        return super().open(path, mode, **kwargs)


@pytest.fixture
def broken() -> Iterator[type[Broken]]:
    fsspec.register_implementation("broken", Broken, clobber=True)
    yield Broken
    Broken.down, Broken.creates, Broken.store = False, True, {}


def test_what_a_store_holds_is_counted_by_listing_it() -> None:
    shelf = RemoteShelf(f"memory://{uuid.uuid4().hex}/lensd")
    assert shelf.used_bytes() == 0
    Artifacts(shelf).store("probe", {"x": bytes(3000)}, {}, ORIGIN)
    Artifacts(shelf).store("other", {"x": bytes(4000)}, {}, ORIGIN)
    assert 7000 < shelf.used_bytes() < 9000


def test_a_store_that_cannot_be_counted_takes_nothing(broken: type[Broken]) -> None:
    store = Artifacts(RemoteShelf("broken://root"), max_bytes_together=10_000)
    broken.down = True
    with pytest.raises(Unavailable) as refused:
        store.store("probe", BLOBS, {}, ORIGIN)
    assert refused.value.reason == "STORE_UNAVAILABLE"
    broken.down = False
    store.store("probe", BLOBS, {}, ORIGIN)


def test_what_is_in_memory_comes_back() -> None:
    url = f"memory://{uuid.uuid4().hex}/lensd"
    info = Artifacts(RemoteShelf(url)).store("probe", BLOBS, {"n": 1}, ORIGIN)
    other = Artifacts(RemoteShelf(url))
    assert other.list() == [info]
    assert other.open("probe@1", ORIGIN).blobs == BLOBS


@pytest.mark.usefixtures("broken")
def test_a_store_that_cannot_create_exclusively_still_numbers_versions(broken: type[Broken]) -> None:
    broken.creates = False
    store = Artifacts(RemoteShelf("broken://lensd"))
    assert [store.store("probe", BLOBS, None, ORIGIN).version for _ in range(3)] == [1, 2, 3]


def test_a_store_that_does_not_answer_is_unavailable_in_our_words(broken: type[Broken]) -> None:
    store = Artifacts(RemoteShelf("broken://lensd"))
    store.store("probe", BLOBS, None, ORIGIN)
    broken.down = True
    for ask in (store.list, lambda: store.open("probe", ORIGIN), lambda: store.delete("probe@1")):
        with pytest.raises(Unavailable) as refused:
            ask()
        assert refused.value.reason == "STORE_UNAVAILABLE"
        assert "hunter2" not in refused.value.message
    with pytest.raises(Unavailable):
        store.store("probe", BLOBS, None, ORIGIN)
    broken.down = False
    assert [info.version for info in store.list()] == [1]


def test_an_empty_store_has_nothing() -> None:
    store = Artifacts(RemoteShelf(f"memory://{uuid.uuid4().hex}"))
    assert store.list() == []
    with pytest.raises(UnknownArtifact):
        store.info("probe")


def test_a_description_never_points_outside_of_its_artifact() -> None:
    root = uuid.uuid4().hex
    store = Artifacts(RemoteShelf(f"memory://{root}"))
    store.store("probe", BLOBS, None, ORIGIN)
    files: Any = fsspec.filesystem("memory")
    path = f"/{root}/probe/1.json"
    files.pipe_file(path, files.cat_file(path).replace(b'"located": "blobs-', b'"located": "../../blobs-'))
    with pytest.raises(Exception, match="damaged"):
        store.open("probe", ORIGIN)


@pytest.mark.parametrize(
    ("url", "why"), [("nosuch://bucket", "nosuch.*unknown"), ("s3://bucket/x", "s3://.*not installed")]
)
def test_a_url_that_cannot_be_opened_says_what_is_missing(
    url: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(WrongStore, match=why):
        RemoteShelf(url)


@pytest.mark.parametrize(
    ("url", "module", "package"),
    [
        ("s3://bucket/x", "s3fs", "s3fs"),
        ("sftp://host/x", "paramiko", "paramiko"),
        ("smb://host/share/x", "smbclient", "smbprotocol"),
    ],
)
def test_a_missing_package_is_named_as_pip_knows_it(
    url: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(WrongStore, match=rf"pip install {package}$") as refused:
        RemoteShelf(url)
    assert refused.value.package == package


def test_a_store_that_cannot_be_reached_when_it_is_opened_is_refused_in_our_words(
    broken: type[Broken], monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(self: Broken, *args: object, **options: object) -> None:
        raise ConnectionRefusedError("nobody listens")

    monkeypatch.setattr(broken, "__init__", connect)
    broken.clear_instance_cache()
    with pytest.raises(WrongStore, match=r"broken:// cannot be opened: ConnectionRefusedError: nobody"):
        RemoteShelf("broken://lensd")


def test_a_probe_leaves_a_store_as_it_was() -> None:
    files: Any = fsspec.filesystem("memory")
    root = uuid.uuid4().hex
    RemoteShelf(f"memory://{root}/new").probe()
    assert not files.exists(f"/{root}/new")
    store = Artifacts(RemoteShelf(f"memory://{root}"))
    info = store.store("probe", BLOBS, None, ORIGIN)
    before = files.find(f"/{root}")
    RemoteShelf(f"memory://{root}").probe()
    assert files.find(f"/{root}") == before
    assert store.list() == [info]


def test_only_the_scheme_is_shown() -> None:
    assert scheme_of("ftp://user:secret@host/x") == "ftp"
