"""What a model will need is known before it is read."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lensd_api import LoadFailed
from lensd_server.engine.anatomy.inspect import inspect_model
from lensd_server.engine.device import choose_device
from lensd_server.engine.memory import available_bytes, process_bytes
from lensd_server.engine.models.sizing import folder_bytes, gguf_bytes
from lensd_server.engine.models.working import PeakOfTensors, WorkingMemory, measure
from lensd_server.tiny_models import TINY

MIB = 1024 * 1024


@pytest.mark.parametrize("name", sorted(TINY)[:6])
def test_the_headers_say_what_a_checkpoint_takes(tmp_path: Path, name: str) -> None:
    module = TINY[name]()
    module.save_pretrained(tmp_path)
    weights = sum(parameter.nbytes for parameter in module.parameters())
    assert folder_bytes(tmp_path, torch.float32) == pytest.approx(weights, rel=0.02)
    assert folder_bytes(tmp_path, torch.bfloat16) == pytest.approx(weights / 2, rel=0.02)
    assert folder_bytes(tmp_path, "auto") == folder_bytes(tmp_path, torch.float32)


def test_only_what_the_index_names_counts_and_integers_keep_their_size(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(10, dtype=torch.float16)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(3, dtype=torch.int64)}, tmp_path / "two.safetensors")
    save_file({"c": torch.zeros(1000)}, tmp_path / "consolidated.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert folder_bytes(tmp_path, torch.float32) == 10 * 4 + 3 * 8
    assert folder_bytes(tmp_path, "auto") == 10 * 2 + 3 * 8


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 40,
        struct.pack("<Q", 4) + b"nope",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 999) + b"{}",
    ],
)
def test_a_damaged_header_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(LoadFailed, match="damaged or incomplete"):
        folder_bytes(tmp_path, torch.float32)


def test_an_index_that_names_what_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    with pytest.raises(LoadFailed, match="damaged or incomplete"):
        folder_bytes(tmp_path, torch.float32)


def test_gguf_counts_as_dense(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    file = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tensor("a", torch.zeros(64, 32, dtype=torch.float16).numpy())
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    assert gguf_bytes(file, torch.float32) == 64 * 32 * 4
    assert gguf_bytes(file, torch.bfloat16) == 64 * 32 * 2


def test_the_peak_of_a_computation_is_what_is_alive_at_once() -> None:
    with PeakOfTensors() as watched:
        first = torch.zeros(1000)
        second = first + 1  # both alive
        del first
        third = second * 2
        del second, third
        torch.zeros(10)
    assert watched.peak == 8000


def test_views_and_changes_in_place_take_nothing() -> None:
    given = torch.zeros(1000)
    with PeakOfTensors() as watched:
        given.view(10, 100)[3].add_(1)
    assert watched.peak == 0


def test_forwards_need_more_the_more_tokens_they_have_and_are_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, device = inspect_model(TINY["llama"]().eval()), choose_device("cpu")
    assert measure(model, device, 32) == pytest.approx(2 * measure(model, device, 16), rel=0.1)
    memory = WorkingMemory(tmp_path)
    once = memory.bytes_for(model, device, "r", 128)
    monkeypatch.setattr(
        "lensd_server.engine.models.working.measure", lambda *_: pytest.fail("measured again")
    )
    assert WorkingMemory(tmp_path).bytes_for(model, device, "r", 256) == 2 * once


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    proc.mkdir()
    cgroup.mkdir()
    assert available_bytes(proc, cgroup) is None
    (proc / "meminfo").write_text("MemTotal: 99 kB\nMemAvailable:    8192 kB\n")
    assert available_bytes(proc, cgroup) == 8 * MIB
    (cgroup / "memory.max").write_text("max\n")
    assert available_bytes(proc, cgroup) == 8 * MIB
    (cgroup / "memory.max").write_text(f"{6 * MIB}\n")
    (cgroup / "memory.current").write_text(f"{5 * MIB}\n")
    (cgroup / "memory.stat").write_text(f"anon 1\ninactive_file {2 * MIB}\n")
    assert available_bytes(proc, cgroup) == 3 * MIB


def test_this_process_occupies_memory() -> None:
    assert process_bytes() > MIB
    assert process_bytes(Path("/nowhere")) == 0
