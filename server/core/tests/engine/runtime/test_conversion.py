"""A conversion happens once, whole or not at all."""

import threading
from pathlib import Path
from typing import Any

import pytest

from lensd_server.engine.models import digests as digests_module
from lensd_server.engine.models.conversion import ConversionCache
from lensd_server.engine.models.digests import Digests, write_atomically


class Converter:
    """Writes one file, or dies in the middle of it."""

    def __init__(self) -> None:
        self.calls = 0
        self.die = False
        self.entered = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def __call__(self, file: Path, folder: Path) -> None:
        self.calls += 1
        (folder / "config.json").write_text("{")
        self.entered.set()
        assert self.go.wait(60)
        if self.die:
            raise RuntimeError("power cut")
        (folder / "config.json").write_text("{}")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF and more")
    return file


@pytest.fixture
def convert() -> Converter:
    return Converter()


@pytest.fixture
def cache(tmp_path: Path, convert: Converter) -> ConversionCache:
    return ConversionCache(tmp_path / "converted", Digests(tmp_path / "digests"), convert)


def test_a_second_request_does_not_convert_again(cache: Any, source: Path, convert: Converter) -> None:
    folder = cache.converted(source)
    assert (folder / "config.json").read_text() == "{}"
    assert cache.converted(source) == folder
    assert convert.calls == 1


def test_equal_contents_elsewhere_are_not_converted_again(
    cache: Any, source: Path, convert: Converter, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(source.read_bytes())
    assert cache.converted(copy) == cache.converted(source)
    assert convert.calls == 1


def test_changed_contents_are_converted_anew(cache: Any, source: Path) -> None:
    first = cache.converted(source)
    source.write_bytes(b"GGUF and something else")
    assert cache.converted(source) != first


def test_a_conversion_that_fails_leaves_nothing(
    cache: Any, source: Path, convert: Converter, tmp_path: Path
) -> None:
    convert.die = True
    with pytest.raises(RuntimeError):
        cache.converted(source)
    assert cache.find(source) is None
    assert [p.name for p in (tmp_path / "converted").iterdir() if p.is_dir()] == []
    convert.die = False
    assert (cache.converted(source) / "config.json").read_text() == "{}"


def test_what_a_dead_process_left_is_cleared_away(cache: Any, source: Path, tmp_path: Path) -> None:
    target = cache.converted(source)
    left = target.with_name(f".converting-{target.name}-99999999")
    target.rename(left)
    assert cache.find(source) is None, "half a conversion is never taken for a whole one"
    assert (cache.converted(source) / "config.json").read_text() == "{}"
    assert not left.exists()


def test_two_at_once_convert_once(cache: Any, source: Path, convert: Converter) -> None:
    convert.go.clear()
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(cache.converted(source))) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert convert.entered.wait(60)
    convert.go.set()
    for thread in threads:
        thread.join(60)
    assert len(folders) == 2
    assert folders[0] == folders[1]
    assert convert.calls == 1


def test_a_digest_is_remembered_until_the_file_changes(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    real = digests_module.sha256

    def counting(path: Path) -> str:
        hashed.append(path)
        return real(path)

    monkeypatch.setattr(digests_module, "sha256", counting)
    first = Digests(tmp_path / "memo").of_file(source)
    assert Digests(tmp_path / "memo").of_file(source) == first
    assert hashed == [source]
    source.write_bytes(b"GGUF and other things")
    assert Digests(tmp_path / "memo").of_file(source) != first


def test_a_damaged_memo_is_hashed_again(tmp_path: Path, source: Path) -> None:
    digests = Digests(tmp_path / "memo")
    expected = digests.of_file(source)
    for memo in (tmp_path / "memo").iterdir():
        memo.write_text("{")
    assert digests.of_file(source) == expected


def test_a_revision_covers_names_and_contents_whatever_their_order(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("1")
    b.write_text("2")
    digests = Digests(tmp_path / "memo")
    revision = digests.of_files(tmp_path, [a, b])
    assert digests.of_files(tmp_path, [b, a]) == revision
    a.write_text("2!")
    b.write_text("1!")
    assert digests.of_files(tmp_path, [a, b]) != revision


def test_an_atomic_write_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "memo.json"
    write_atomically(path, b"before")
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError):
        write_atomically(path, b"after")
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["memo.json"]


def test_a_damaged_conversion_is_found_and_made_again(cache: Any, source: Path, convert: Converter) -> None:
    file = cache.converted(source) / "config.json"
    file.write_text("[]")
    assert (cache.converted(source) / "config.json").read_text() == "{}"
    file.unlink()
    assert (cache.converted(source) / "config.json").read_text() == "{}"
    assert convert.calls == 3
