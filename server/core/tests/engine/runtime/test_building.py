"""Modules in half precision are what transformers makes of them, and nobody else notices that they are built."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from lensd_server.engine.device import choose_device
from lensd_server.engine.models.building import DefaultDtype
from lensd_server.engine.models.loading import read_weights
from lensd_server.tiny_models import TINY, tiny_model, tiny_tokenizer

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("models")

    def save(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            tiny_model(name).save_pretrained(folder)
            tiny_tokenizer().save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", sorted(TINY))
def test_every_tensor_is_what_transformers_makes_of_it(saved: Any, name: str, dtype: str) -> None:
    expected = AutoModelForCausalLM.from_pretrained(saved(name), dtype=HALVES[dtype])
    found = read_weights(saved(name), choose_device("cpu"), dtype)
    theirs = dict([*expected.named_parameters(), *expected.named_buffers()])
    mine = dict([*found.named_parameters(), *found.named_buffers()])
    assert mine.keys() == theirs.keys()
    assert {key: tensor.dtype for key, tensor in mine.items()} == {k: t.dtype for k, t in theirs.items()}
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_other_threads_keep_their_element_type(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, torch.dtype] = {}
    build = LlamaForCausalLM.__init__

    def look(who: str) -> None:
        seen[who] = torch.zeros(1).dtype

    def watched(self: LlamaForCausalLM, *args: Any, **kwargs: Any) -> None:
        look("the building thread")
        other = threading.Thread(target=look, args=("another",))
        other.start()
        other.join()
        build(self, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "__init__", watched)
    read_weights(saved("llama"), choose_device("cpu"), "bfloat16")
    assert seen == {"the building thread": torch.bfloat16, "another": torch.float32}


def test_models_of_different_element_types_are_loaded_at_once(saved: Any) -> None:
    found: dict[tuple[str, int], set[torch.dtype]] = {}
    folder, start = saved("llama"), threading.Barrier(8)

    def load(dtype: str, number: int) -> None:
        start.wait(60)
        for _ in range(3):
            module = read_weights(folder, choose_device("cpu"), dtype)
            found[dtype, number] = {weight.dtype for weight in module.parameters()}

    threads = [
        threading.Thread(target=load, args=(dtype, number))
        for number in range(4)
        for dtype in ("float32", "bfloat16")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == {
        (name, number): {dtype}
        for number in range(4)
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }


def test_only_fractions_of_no_stated_element_type_are_converted() -> None:
    with DefaultDtype(torch.bfloat16):
        made = {
            torch.bfloat16: [
                torch.empty(2),
                torch.tensor(1.0),
                torch.full((2,), 1.5),
                torch.arange(0.0, 1.0, 0.5),
            ],
            torch.float32: [torch.empty(2, dtype=torch.float32), torch.zeros(2, dtype=torch.float)],
            torch.int64: [torch.arange(3), torch.tensor([1, 2]), torch.full((2,), 1)],
            torch.float64: [torch.ones(1, dtype=torch.float64)],
        }
        kept = torch.as_tensor(torch.ones(2, dtype=torch.float32))
    assert kept.dtype == torch.float32
    for dtype, tensors in made.items():
        assert {tensor.dtype for tensor in tensors} == {dtype}
    assert torch.empty(1).dtype == torch.float32
