"""A daemon on a GPU: half precision, what it tells of the device, models that come and go, a context that breaks."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from lensd_client import Client
from lensd_client.errors import LensdError
from lensd_server.engine.device import LIBRARY_BYTES
from lensd_server.tiny_models import tiny_model, tiny_tokenizer
from tests.e2e.daemon import Daemon, install_stranger, running_daemon

PROMPTS = [f"The capital of France is Paris. One, two, {word}" for word in ("three", "four", "Rome", "it")]
#: Seven bits of a number's fraction, through three layers; on the CPU it was at most 0.09.
HALF = 0.15


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights, as float32 and as bfloat16."""
    root = tmp_path_factory.mktemp("models")
    for name in ("llama", "gpt2"):
        module = tiny_model(name).to(torch.bfloat16)
        for dtype, suffix in ((torch.float32, "full"), (torch.bfloat16, "half")):
            folder = root / f"{name}-{suffix}"
            module.to(dtype).save_pretrained(folder)
            tiny_tokenizer().save_pretrained(folder)
    return root


@pytest.fixture(scope="module")
def daemon(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    flags = [
        flag for folder in sorted(folders.iterdir()) for flag in ("--model", f"{folder.name}=dir:{folder}")
    ]
    with running_daemon(tmp_path_factory.mktemp("gpu-daemon"), *flags) as running:
        yield running


@pytest.fixture
def lens(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.grpc, admin_target=daemon.admin) as client:
        yield client


def test_models_are_where_and_what_they_are_said_to_be(lens: Client) -> None:
    found = {model.name: (model.device, model.dtype) for model in lens.models()}
    assert found == {
        f"{name}-{kind}": ("cuda:0", dtype)
        for name in ("llama", "gpt2")
        for kind, dtype in (("full", "float32"), ("half", "bfloat16"))
    }


def apart(found: Sequence[float], expected: Sequence[float]) -> float:
    """How long the difference is, in lengths of what is expected."""
    theirs = torch.tensor(expected)
    return float((torch.tensor(found) - theirs).norm() / theirs.norm())


def by_writer(columns: Mapping[str, Sequence[Any]]) -> dict[tuple[Any, ...], float]:
    """Contributions by what made them."""
    names = [name for name in columns if name not in ("value", "share")]
    writers = zip(*(columns[name] for name in names), strict=True)
    return dict(zip(writers, columns["value"], strict=True))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("unit", ["component", "head", "neuron", "source"])
def test_half_precision_attributes_what_full_precision_does(lens: Client, name: str, unit: str) -> None:
    answers = [
        lens.analyze("dla", f"{name}-{kind}", prompt=PROMPTS[0], unit=unit, target=310)
        for kind in ("full", "half")
    ]
    full, half = (by_writer(answer["contributions"].to_dict()) for answer in answers)
    both = sorted(
        full.keys() & half.keys(), key=str
    )  # the largest are told; near their end the two may differ
    assert len(both) >= 0.9 * len(full)
    assert apart([half[writer] for writer in both], [full[writer] for writer in both]) <= HALF
    for answer in answers:
        assert not answer.warnings


def test_half_precision_is_the_same_in_company(daemon: Daemon) -> None:
    def ask(number: int) -> dict[tuple[Any, ...], float]:
        with Client(daemon.grpc) as mine:
            prompt = PROMPTS[number % len(PROMPTS)] + " and" * (number % 7)
            answer = mine.analyze("dla", "llama-half", prompt=prompt, unit="component", target=310)
            return by_writer(answer["contributions"].to_dict())

    alone = [ask(number) for number in range(28)]
    with ThreadPoolExecutor(28) as callers:
        together = list(callers.map(ask, range(28)))
    for mine, theirs in zip(together, alone, strict=True):
        assert apart([mine[writer] for writer in theirs], list(theirs.values())) <= HALF


def gpu_bytes(daemon: Daemon) -> dict[str, float]:
    """What the metrics say of the GPU's memory, by kind."""
    lines = daemon.scrape().splitlines()
    told = [line for line in lines if line.startswith('lensd_device_memory_bytes{device="cuda:0"')]
    return {line.partition("kind=")[2].split('"')[1]: float(line.split()[-1]) for line in told}


def test_the_metrics_tell_of_the_gpu(daemon: Daemon, lens: Client) -> None:
    list(lens.analyze("dla", "llama-full", prompt=PROMPTS[0]))
    told = gpu_bytes(daemon)
    assert told.keys() == {"budget", "reserved", "used"}
    assert all(value > 0 for value in told.values()), told


def test_a_model_gives_its_memory_back_and_comes_again(daemon: Daemon, lens: Client) -> None:
    asked = {"prompt": PROMPTS[0], "unit": "component", "target": 310}

    def turn() -> tuple[list[float], float]:
        """What the model says, and the bytes in use once it is gone."""
        values = lens.analyze("dla", "gpt2-half", **asked)["contributions"].to_dict()["value"]
        lens.unload("gpt2-half")
        return list(values), gpu_bytes(daemon)["used"]

    before, used = turn()
    for _ in range(5):
        again, used_then = turn()
        assert again == pytest.approx(before, abs=1e-3)
    # Libraries keep something for each thread and stream they meet, of which there are no more with every load.
    assert used_then <= used + LIBRARY_BYTES["cuda"]


def test_the_doctor_names_the_gpu() -> None:
    told = subprocess.run(
        [str(Path(sys.executable).with_name("lensd")), "doctor"], capture_output=True, text=True, timeout=120
    )
    assert torch.cuda.get_device_name(0) in told.stdout


def test_a_context_that_breaks_ends_the_process_and_says_so(folders: Path, tmp_path: Path) -> None:
    plugin = install_stranger(tmp_path, Path(__file__).with_name("breaking_plugin.py"))
    path = os.pathsep.join(filter(None, [str(plugin), os.environ.get("PYTHONPATH", "")]))
    model = ("--model", f"llama=dir:{folders / 'llama-full'}")
    with running_daemon(tmp_path, *model, environment={"PYTHONPATH": path}) as running:
        with Client(running.grpc) as client:
            list(client.analyze("breaks", "llama", really=False))
            with pytest.raises(LensdError) as lost:
                # Less than the server asks to wait before another try: the answer to the first is what is told.
                list(client.analyze("breaks", "llama", timeout_s=8))
        assert lost.value.reason == "DEVICE_LOST"
        assert running.process.wait(timeout=60) == 1
    assert "cuda:0 failed in a way that only a new process can mend" in running.log.read_text()
