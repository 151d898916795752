"""What must hold for all inputs: rows add up, are linear in the direction, and refuse when wrong."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lensd_api import LayerAnatomy, ModelView, Unit, Write
from lensd_dla import Dla, IncompleteDecomposition, NotFinite
from lensd_server.engine.anatomy.inspect import InspectedModel
from lensd_server.tiny_models import TINY, tiny_tokenizer
from tests.numerics.conftest import TEXT, direct_model
from tests.numerics.direct import Answer, DirectModel, answer

Models = Callable[[str], DirectModel]
NAMES = ("gpt2", "llama", "gemma2", "olmo2", "mixtral", "cohere", "granite", "bloom")


def values(found: Answer) -> list[float]:
    return found.one("contributions")["value"]


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    unit=st.sampled_from([unit.value for unit in Unit]),
    tokens=st.lists(st.integers(0, 383), min_size=1, max_size=12),
    target=st.integers(0, 383),
    data=st.data(),
)
def test_rows_add_up_whatever_is_asked(
    name: str, unit: str, tokens: list[int], target: int, data: st.DataObject
) -> None:
    position = data.draw(st.integers(-len(tokens), len(tokens) - 1))
    top_k = data.draw(st.integers(1, 2000))
    asked = {"tokens": tokens, "unit": unit, "target": target, "positions": [position], "top_k": top_k}
    found = answer(Dla(), direct_model(name), asked)
    columns, summary = found.one("contributions"), found.one("summary")
    rows = [v for v, kind in zip(columns["value"], columns["kind"], strict=True) if kind != "rounding"]
    size = math.fsum(abs(v) for v in rows)
    assert abs(math.fsum(rows) - summary["logit"]) <= 1e-6 * max(size, 1.0)
    assert len({len(column) for column in columns.values()}) == 1
    keys = list(
        zip(columns["kind"], columns["layer"], columns["index"], columns.get("source", rows), strict=False)
    )
    assert len(set(keys)) == len(keys), "a component has one row"


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(NAMES), seed=st.integers(0, 1000), a=st.floats(-2, 2), b=st.floats(-2, 2))
def test_rows_are_linear_in_the_direction(name: str, seed: int, a: float, b: float) -> None:
    model = direct_model(name)
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.randn(model.anatomy.d_model, generator=generator) for _ in range(2))
    asked = {"prompt": TEXT, "unit": "head", "direction": "d"}
    first, second = (values(answer(Dla(), model, asked, d=d)) for d in (one, other))
    mixed = values(answer(Dla(), model, asked, d=a * one + b * other))
    size = max(map(abs, [*first, *second, 1.0]))
    for x, y, z in zip(first, second, mixed, strict=True):
        assert z == pytest.approx(a * x + b * y, abs=1e-5 * size)


@pytest.mark.parametrize("name", NAMES)
def test_a_contrast_is_the_difference_of_two_targets(name: str, model_of: Models) -> None:
    asked = {"prompt": TEXT, "unit": "head", "target": 30}
    model = model_of(name)
    first, second = (values(answer(Dla(), model, asked | {"target": token})) for token in (30, 31))
    versus = values(answer(Dla(), model, asked | {"contrast": 31}))
    for x, y, z in zip(first, second, versus, strict=True):
        assert z == pytest.approx(x - y, abs=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_finer_rows_add_up_to_coarser_ones(name: str, model_of: Models) -> None:
    model = model_of(name)

    def per_layer(unit: str) -> dict[int, float]:
        columns = answer(Dla(), model, {"prompt": TEXT, "unit": unit, "target": 9, "top_k": 3}).one(
            "contributions"
        )
        sums: dict[int, float] = {}
        for layer, value in zip(columns["layer"], columns["value"], strict=True):
            if layer is not None:
                sums[layer] = sums.get(layer, 0.0) + value
        return sums

    blocks = per_layer("block")
    for unit in ("component", "head", "neuron", "expert", "source"):
        assert per_layer(unit) == pytest.approx(blocks, abs=1e-5), unit


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "opt", "phi3"])
def test_short_types_stay_within_their_tolerance(name: str, dtype: torch.dtype) -> None:
    model = DirectModel.of(TINY[name]().to(dtype), tiny_tokenizer())
    for unit in ("block", "component", "head", "neuron"):
        summary = answer(Dla(), model, {"prompt": TEXT, "unit": unit}).one("summary")
        assert 0 < summary["completeness_error"] < summary["tolerance"] / 2
        assert summary["tolerance"] < 0.5


def degraded(model: DirectModel, units: Sequence[frozenset[Unit]]) -> DirectModel:
    """The model as if inspection had refused finer units in some layers."""
    layers = tuple(LayerAnatomy(u, {Unit.HEAD: "made coarser for a test"}) for u in units)
    inspected = replace(model.inspected, anatomy=replace(model.anatomy, layers=layers))
    return DirectModel(inspected, model.tokenizer)


@pytest.mark.parametrize("unit", ["head", "neuron", "source"])
@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_layers_that_offer_less_give_coarser_rows_and_say_so(name: str, unit: str, model_of: Models) -> None:
    whole = model_of(name)
    block = frozenset({Unit.BLOCK})
    mixed = degraded(whole, [frozenset(Unit), block, block | {Unit.COMPONENT}])
    asked = {"prompt": TEXT, "unit": unit, "top_k": 10_000, "direct_effect": True, "positions": [2, -1]}
    found, full = answer(Dla(), mixed, asked), answer(Dla(), whole, asked)
    assert found.one("summary")["units"] == [unit, "block", "component"]
    assert {reason for reason, _ in found.context.warnings} == {"COARSER_UNIT"}
    assert mixed.forwards == 3
    columns, reference = found.one("contributions"), full.one("contributions")
    for column in ("value", "direct_effect"):
        got, expected = (_of_layer(c, 0, column) for c in (columns, reference))
        assert got == pytest.approx(expected, abs=1e-6)
    kinds = {layer: kind for layer, kind in zip(columns["layer"], columns["kind"], strict=True) if layer}
    assert kinds[1] == "block"
    assert kinds[2] in ("attn", "mlp")
    for error in found.one("logits")["completeness_error"]:
        assert error <= 1e-5


def _of_layer(columns: dict[str, list[Any]], layer: int, column: str) -> dict[Any, float]:
    keys = zip(
        columns["position"], columns["kind"], columns["layer"], columns["index"],
        columns.get("source", columns["index"]), strict=True,
    )  # fmt: skip
    return {
        key: value
        for key, value in zip(keys, columns[column], strict=True)
        if key[2] == layer and value is not None
    }


@dataclass(frozen=True)
class WrongWrite:
    """A write whose weight is not the model's."""

    of: Write

    @property
    def weight(self) -> Tensor:
        return self.of.weight * 1.01

    def __getattr__(self, name: str) -> Any:
        return getattr(self.of, name)


@dataclass(frozen=True)
class WrongView:
    """A view that is wrong about layer 1."""

    of: ModelView

    def attention_write(self, layer: int) -> Write:
        write = self.of.attention_write(layer)
        return WrongWrite(write) if layer == 1 else write  # type: ignore[return-value]

    def mlp_write(self, layer: int) -> Write:
        write = self.of.mlp_write(layer)
        return WrongWrite(write) if layer == 1 else write  # type: ignore[return-value]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.of, name)


@dataclass(frozen=True)
class WrongUnembedding:
    """A view whose output head is not the model's."""

    of: ModelView

    @property
    def unembed(self) -> Tensor:
        return self.of.unembed * 1.01

    def __getattr__(self, name: str) -> Any:
        return getattr(self.of, name)


def with_view(model: DirectModel, view: Any) -> DirectModel:
    inspected: InspectedModel = replace(model.inspected, view=view)
    return DirectModel(inspected, model.tokenizer)


@pytest.mark.parametrize("unit", ["head", "neuron", "source"])
def test_a_wrong_split_is_refused_naming_its_layer_and_the_way_out(unit: str, model_of: Models) -> None:
    model = model_of("llama")
    wrong = with_view(model, WrongView(model.inspected.view))
    with pytest.raises(IncompleteDecomposition) as refused:
        answer(Dla(), wrong, {"prompt": TEXT, "unit": unit})
    assert refused.value.reason == "INCOMPLETE_DECOMPOSITION"
    coarser = {"source": "head"}.get(unit, "component")
    assert "layer 1" in refused.value.message
    assert f"unit='{coarser}'" in refused.value.message


def test_rows_that_miss_the_models_own_logit_are_refused(model_of: Models) -> None:
    model = model_of("llama")
    wrong = with_view(model, WrongUnembedding(model.inspected.view))
    with pytest.raises(IncompleteDecomposition, match="against the model's own logit"):
        answer(Dla(), wrong, {"prompt": TEXT, "unit": "block"})


def test_a_model_that_gives_nan_is_not_attributed() -> None:
    module = TINY["llama"]()
    model = DirectModel.of(module, tiny_tokenizer())
    with torch.no_grad():
        module.get_parameter("model.norm.weight")[0] = torch.nan
    with pytest.raises(NotFinite, match="wider dtype"):
        answer(Dla(), model, {"prompt": TEXT, "unit": "component"})
