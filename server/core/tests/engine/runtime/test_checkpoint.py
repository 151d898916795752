"""Reading the weights of a checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lensd_api import LoadFailed
from lensd_server.engine.models import checkpoint
from lensd_server.engine.models.checkpoint import read_checkpoint

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool)


def tensors(shapes: list[list[int]]) -> dict[str, Tensor]:
    """One tensor of each shape, of changing types."""
    numbers = torch.Generator().manual_seed(1)
    return {
        f"layer.{i}": torch.randint(0, 2, shape, generator=numbers).to(DTYPES[i % len(DTYPES)])
        for i, shape in enumerate(shapes)
    }


def save(folder: Path, found: dict[str, Tensor]) -> Path:
    save_file(found, folder / "model.safetensors")
    return folder


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype is other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@given(shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=9))
def test_every_tensor_comes_back_as_it_was_saved(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("checkpoint")
    assert same(read_checkpoint(save(folder, tensors(shapes))), tensors(shapes))


def test_shards_are_read_together(tmp_path: Path) -> None:
    found = tensors([[3], [2, 2], [4], []])
    save_file({"layer.0": found["layer.0"]}, tmp_path / "a.safetensors")
    save_file({name: found[name] for name in ("layer.1", "layer.2", "layer.3")}, tmp_path / "b.safetensors")
    shards = {name: "a.safetensors" if name == "layer.0" else "b.safetensors" for name in found}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert same(read_checkpoint(tmp_path), found)


def test_what_was_read_stays_as_it_was_when_the_file_is_overwritten(tmp_path: Path) -> None:
    found = read_checkpoint(save(tmp_path, {"layer.0": torch.ones(1000)}))
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.write(b"\x00" * 2000)
    assert torch.equal(found["layer.0"], torch.ones(1000))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shards = {"weight_map": {"layer.0": "gone.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(shards))
    with pytest.raises(LoadFailed, match=r"lacks gone\.safetensors"):
        read_checkpoint(tmp_path)


def test_an_index_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    save(tmp_path, tensors([[3]]))
    (tmp_path / "inside").mkdir()
    shards = {"weight_map": {"layer.0": "../model.safetensors"}}
    (tmp_path / "inside" / "model.safetensors.index.json").write_text(json.dumps(shards))
    with pytest.raises(LoadFailed, match=r"lacks model\.safetensors"):
        read_checkpoint(tmp_path / "inside")


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_an_index_that_is_none_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(LoadFailed, match="cannot be read as the index"):
        read_checkpoint(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match=r"holds no model\.safetensors"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 20, 200, -1])
def test_a_file_that_is_cut_short_is_damaged(tmp_path: Path, keep: int) -> None:
    file = save(tmp_path, {"layer.0": torch.ones(1000)}) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(SafetensorError):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda file: file.truncate(1000), "ends before its last tensor"),
        (lambda file: file.write(b"\xff" * 100), "was changed while it was read"),
    ],
)
def test_a_file_that_is_changed_while_it_is_read_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[BinaryIO], object], problem: str
) -> None:
    file = save(tmp_path, {"layer.0": torch.ones(1000)}) / "model.safetensors"
    checked: Callable[..., object] = checkpoint.safe_open

    def check_then_change(*args: object, **keywords: object) -> object:
        opened = checked(*args, **keywords)
        with file.open("r+b") as changed:
            change(changed)
        return opened

    monkeypatch.setattr(checkpoint, "safe_open", check_then_change)
    with pytest.raises(SafetensorError, match=problem):
        read_checkpoint(tmp_path)
