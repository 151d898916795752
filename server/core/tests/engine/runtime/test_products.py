"""Products of float32 matrices by the quicker library: the same numbers, the same weights, and only where it pays."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lensd_server.engine.anatomy.inspect import inspect_model
from lensd_server.engine.batching.price import Prices
from lensd_server.engine.device import Device
from lensd_server.engine.models import products
from lensd_server.engine.models.products import (
    OneDnnConv1D,
    OneDnnLinear,
    least_rows,
    library,
    one_dnn,
    use_quickest,
)
from lensd_server.tiny_engine import weights_digest
from lensd_server.tiny_models import TINY, tiny_model

SHAPES = [(1, 320), (2, 320), (33, 320), (4, 7, 320), (0, 320)]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which oneDNN is always quicker, for however small a weight."""
    monkeypatch.setattr(products, "LEAST_NUMBERS", 1)
    monkeypatch.setattr(products, "least_rows", lambda *_: 1)


def projection(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    made = kind().requires_grad_(False)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    return made


KINDS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(320, 480),
    "without bias": lambda: nn.Linear(320, 480, bias=False),
    "conv1d": lambda: Conv1D(480, 320),
}


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("kind", KINDS)
def test_a_projection_gives_what_it_gave(kind: str) -> None:
    plain, quick = projection(KINDS[kind]), projection(KINDS[kind])
    use_quickest(quick)
    assert isinstance(quick, OneDnnLinear | OneDnnConv1D)
    with torch.inference_mode():
        for shape in SHAPES:
            inputs = torch.randn(shape)
            torch.testing.assert_close(quick(inputs), plain(inputs), rtol=1e-5, atol=1e-5)
        slanted = torch.randn(6, 9, 320)[:, 2:7].transpose(0, 1)
        torch.testing.assert_close(quick(slanted), plain(slanted.contiguous()), rtol=1e-5, atol=1e-5)
        many = torch.randn(64, 320)
        torch.testing.assert_close(quick(many)[3:4], quick(many[3:4]), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("kind", KINDS)
def test_with_gradients_it_is_torch_s_own_and_has_them(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = projection(KINDS[kind])
    use_quickest(quick)
    monkeypatch.setattr(products, "one_dnn", None)
    inputs = torch.randn(5, 320, requires_grad=True)
    quick(inputs).sum().backward()
    assert inputs.grad is not None
    assert float(inputs.grad.abs().sum()) > 0


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("name", TINY)
def test_a_model_of_any_architecture_predicts_what_it_predicted(name: str) -> None:
    plain, quick = tiny_model(name), tiny_model(name)
    before = weights_digest(quick)
    use_quickest(quick)
    assert library(quick) == "onednn"
    tokens = torch.randint(0, 90, (3, 11), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = plain(tokens).logits, quick(tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert weights_digest(quick) == before


def test_only_plain_projections_in_float32_that_are_large_enough_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Own(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as torch names it
            return -super().forward(input)

    monkeypatch.setattr(products, "least_rows", lambda *_: 2)
    parts = nn.ModuleList(
        [nn.Linear(256, 256), Own(256, 256), nn.Linear(16, 16), nn.Linear(256, 256).to(torch.bfloat16)]
    )
    use_quickest(parts)
    assert [type(part) for part in parts] == [OneDnnLinear, Own, nn.Linear, nn.Linear]


def test_a_single_row_is_left_to_torch_where_that_is_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "least_rows", lambda *_: 2)
    quick = projection(KINDS["linear"])
    use_quickest(quick)
    asked: list[int] = []

    def note(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        asked.append(len(inputs))
        return one_dnn(inputs, weight, bias)

    monkeypatch.setattr(products, "one_dnn", note)
    with torch.inference_mode():
        quick(torch.randn(1, 320))
        quick(torch.randn(320))
        quick(torch.randn(2, 320))
    assert asked == [2]


WEIGHT = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(2))


def known(delay: Callable[[int], float], wrong: float = 0.0) -> Callable[..., Tensor]:
    """A product whose answers are there already, and take as long as ``delay`` says for so many rows."""
    inputs = torch.randn((max(products.ROWS), 1024), generator=torch.Generator().manual_seed(0))
    answers = inputs @ WEIGHT.T + wrong

    def product(inputs: Tensor, *_: Any) -> Tensor:
        if seconds := delay(len(inputs)):
            time.sleep(seconds)
        return answers[: len(inputs)]

    return product


def test_what_is_quicker_is_used_from_as_many_rows_on() -> None:
    assert least_rows(known(lambda rows: 0.0), WEIGHT, None) == 1
    assert least_rows(known(lambda rows: 0.0 if rows > 1 else 0.1), WEIGHT, None) == 2
    assert least_rows(known(lambda rows: 0.2), WEIGHT, None) is None


def test_what_is_quicker_for_a_short_text_only_is_not_used() -> None:
    assert least_rows(known(lambda rows: 0.0 if rows < max(products.ROWS) else 0.2), WEIGHT, None) is None


def test_what_is_quick_but_wrong_or_absent_is_not_used() -> None:
    def absent(*_: Any) -> Tensor:
        raise RuntimeError("not offered for this processor")

    assert least_rows(known(lambda rows: 0.0, wrong=0.1), WEIGHT, None) is None
    assert least_rows(absent, WEIGHT, None) is None


_MANY_SHAPES = """
import psutil, torch
from torch import nn
from lensd_server.engine.models import products

products.least_rows = lambda *_: 1
layers = nn.ModuleList(nn.Linear(n, m, bias=False) for n, m in ((576, 192), (576, 576), (576, 1536), (1536, 576)))
products.use_quickest(layers)
inputs = [torch.randn(400, layer.in_features) for layer in layers]
with torch.inference_mode():
    for layer, given in zip(layers, inputs):
        layer(given)
    before = psutil.Process().memory_info().rss
    for rows in range(2, 400):
        for layer, given in zip(layers, inputs):
            layer(given[:rows])
print(psutil.Process().memory_info().rss - before)
"""


def test_products_of_ever_other_shapes_do_not_fill_memory() -> None:
    """In a process of its own: how many kernels are kept is decided at the first product."""
    done = subprocess.run([sys.executable, "-c", _MANY_SHAPES], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 250 * 2**20  # 800 MiB when all are kept


def test_prices_are_remembered_by_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A daemon whose products became quicker must not go by what they took before."""
    monkeypatch.setattr(products, "LEAST_NUMBERS", 1)
    monkeypatch.setattr(products, "least_rows", lambda *_: 1)
    module, device = tiny_model("llama"), Device(torch.device("cpu"))
    Prices(tmp_path).of(inspect_model(module), device, "r")
    use_quickest(module)
    Prices(tmp_path).of(inspect_model(module), device, "r")
    assert [path.stem.rsplit("-", 1)[1] for path in sorted(tmp_path.iterdir())] == ["onednn", "torch"]
