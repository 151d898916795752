"""Every row of every architecture against the fp64 oracle: the values, not only their sum."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lensd_api import Unit
from lensd_dla import Dla
from lensd_server.tiny_models import TINY
from tests.numerics.conftest import TEXT
from tests.numerics.direct import Answer, DirectModel, answer
from tests.numerics.oracle import Key, Oracle

POSITIONS = (3, -1)
TARGET, CONTRAST = 200, 77
#: fp32 against fp64, as a share of the largest row.
SHARE = 5e-6

Models = Callable[[str], DirectModel]
Oracles = Callable[[str], Oracle]

#: These do not go through transformers' AttentionInterface.
OWN_ATTENTION = ("bloom", "falcon", "falcon_new", "gptj")
UNITS = ("block", "component", "head", "neuron", "expert")


def limit(values: list[float]) -> float:
    return SHARE * max(1.0, max(abs(v) for v in values))


def rows(columns: dict[str, list[Any]], position: int, column: str = "value") -> dict[Key, float]:
    found: dict[Key, float] = {}
    keys = zip(columns["position"], columns["kind"], columns["layer"], columns["index"], strict=True)
    for (where, kind, layer, index), value in zip(keys, columns[column], strict=True):
        if where == position and kind not in ("rounding", "rest"):
            assert (kind, layer, index) not in found, "two rows of one component"
            found[kind, layer, index] = value
    return found


def asked(model: DirectModel, unit: str, **params: Any) -> Answer:
    return answer(
        Dla(),
        model,
        {
            "prompt": TEXT,
            "unit": unit,
            "positions": POSITIONS,
            "target": TARGET,
            "contrast": CONTRAST,
            **params,
        },
    )


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", TINY)
def test_every_row_is_the_oracles(name: str, unit: str, model_of: Models, oracle_for: Oracles) -> None:
    model, oracle = model_of(name), oracle_for(name)
    found = asked(model, unit, top_k=10_000, direct_effect=True)
    given = set(found.one("summary")["units"])
    (used,) = given
    columns = found.one("contributions")
    direction = oracle.direction(TARGET, CONTRAST)
    writes = list(oracle.writes(used))
    for position in (3, len(oracle.tokens) - 1):
        values, effects = rows(columns, position), rows(columns, position, "direct_effect")
        expected = {key: float(oracle.contribution(write, direction)[position]) for key, write in writes}
        if used == "expert":  # an expert the token is not routed to has no row
            expected = {k: v for k, v in expected.items() if k[0] != "expert" or v != 0.0}
        expected |= oracle.constants(direction, TARGET, CONTRAST)
        assert values.keys() == expected.keys()
        tolerance = limit(list(expected.values()))
        for key, value in expected.items():
            assert values[key] == pytest.approx(value, abs=tolerance), key
        for key, write in writes:
            if key in effects:
                assert effects[key] == pytest.approx(
                    float(oracle.effect(write, direction)[position]), abs=2 * tolerance
                ), key


@pytest.mark.parametrize("name", OWN_ATTENTION)
def test_without_attention_weights_sources_become_heads(name: str, model_of: Models) -> None:
    found = asked(model_of(name), "source")
    assert set(found.one("summary")["units"]) == {"head"}
    assert [reason for reason, _ in found.context.warnings] == ["COARSER_UNIT"]
    assert not [r for r in found.results if r.name.startswith("sources")]


@pytest.mark.parametrize("name", [name for name in TINY if name not in OWN_ATTENTION])
def test_every_source_is_the_oracles(name: str, model_of: Models, oracle_for: Oracles) -> None:
    model, oracle = model_of(name), oracle_for(name)
    assert Unit.SOURCE in model.anatomy.units
    found = asked(model, "source", top_k=30, direct_effect=True)
    sources = found.one("sources").data.double()
    direction = oracle.direction(TARGET, CONTRAST)
    columns = found.one("contributions")
    for i, position in enumerate((3, len(oracle.tokens) - 1)):
        expected = torch.stack(
            [
                _at(oracle, oracle.source_writes(n, position), direction, position)
                for n in range(len(oracle.layers))
            ]
        )
        assert torch.allclose(sources[i], expected, rtol=0, atol=limit(expected.flatten().tolist()))
        chosen = [
            r
            for r, (p, s) in enumerate(zip(columns["position"], columns["source"], strict=True))
            if p == position and s is not None
        ]
        assert len(chosen) == 30
        smallest = min(abs(columns["value"][r]) for r in chosen)
        assert (expected.abs() > smallest * 1.0001).sum() < 30
        for r in chosen:
            place = columns["layer"][r], columns["index"][r], columns["source"][r]
            assert columns["value"][r] == pytest.approx(float(expected[place]), abs=1e-5)
            write = torch.zeros_like(oracle.residual)
            write[position] = oracle.source_writes(place[0], position)[place[1], place[2]]
            effect = float(oracle.effect(write, direction)[position])
            assert columns["direct_effect"][r] == pytest.approx(effect, abs=2e-5)


def _at(oracle: Oracle, writes: torch.Tensor, direction: torch.Tensor, position: int) -> torch.Tensor:
    every = writes.new_zeros(len(oracle.tokens), *writes.shape)
    every[position] = writes
    return oracle.contribution(every, direction)[position]


@pytest.mark.parametrize("unit", [*UNITS, "source"])
@pytest.mark.parametrize("name", TINY)
def test_rows_add_up_to_the_models_own_logit(
    name: str, unit: str, model_of: Models, oracle_for: Oracles
) -> None:
    oracle = oracle_for(name)
    found = asked(model_of(name), unit, top_k=7)
    columns, logits = found.one("contributions"), found.one("logits")
    for i, position in enumerate((3, len(oracle.tokens) - 1)):
        at = [r for r, p in enumerate(columns["position"]) if p == position]
        rounding = [r for r in at if columns["kind"][r] == "rounding"]
        assert len(rounding) == 1
        own = oracle.raw_logits[position, TARGET] - oracle.raw_logits[position, CONTRAST]
        total = math.fsum(columns["value"][r] for r in at if r not in rounding)
        assert logits["logit"][i] == pytest.approx(float(own), abs=1e-5)
        assert total == pytest.approx(float(own), abs=2e-5)
        assert logits["sum"][i] == pytest.approx(total, abs=1e-9)
        assert logits["completeness_error"][i] <= 1e-5
        assert abs(logits["rounding"][i]) <= 1e-5
        assert math.fsum(abs(columns["share"][r]) for r in at) == pytest.approx(1.0)


@pytest.mark.parametrize("name", [name for name in TINY if name != "bloom"])
def test_heads_are_offered(name: str, model_of: Models) -> None:
    found = asked(model_of(name), "head")
    anatomy = model_of(name).anatomy
    assert found.context.warnings == []
    heads = found.one("heads")
    assert tuple(heads.data.shape) == (2, anatomy.n_layers, anatomy.n_heads)
    assert not bool(heads.data.isnan().any())
    assert found.one("contributions")["kind"].count("head") == heads.data.numel()


@pytest.mark.parametrize("name", TINY)
def test_model_units_are_what_the_model_returns(name: str, model_of: Models, oracle_for: Oracles) -> None:
    oracle = oracle_for(name)
    alone = asked(model_of(name), "block", contrast=None).one("summary")
    assert alone["logit_model_units"] == pytest.approx(float(oracle.logits[-1, TARGET]), abs=1e-5)
    versus = asked(model_of(name), "block").one("summary")
    own = float(oracle.logits[-1, TARGET] - oracle.logits[-1, CONTRAST])
    assert versus["logit_model_units"] == pytest.approx(own, abs=1e-5)
    transformed = name in ("gemma2", "cohere", "granite")
    assert (abs(alone["logit_factor"] - 1.0) > 1e-3) == transformed


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "cohere", "granite"])
def test_the_lens_is_the_oracles(name: str, model_of: Models, oracle_for: Oracles) -> None:
    oracle = oracle_for(name)
    lens = asked(model_of(name), "component", lens=True, lens_top_k=4).one("lens")
    last = len(oracle.tokens) - 1
    for number in range(len(oracle.layers)):
        logits = oracle.lens(number)[last]
        at = [
            r
            for r, key in enumerate(zip(lens["position"], lens["layer"], strict=True))
            if key == (last, number)
        ]
        assert [lens["rank"][r] for r in at] == [0, 1, 2, 3]
        assert [lens["token_id"][r] for r in at] == logits.topk(4).indices.tolist()
        for r in at:
            token = lens["token_id"][r]
            assert lens["logit"][r] == pytest.approx(float(logits[token]), abs=1e-5)
            assert lens["probability"][r] == pytest.approx(float(logits.softmax(-1)[token]), abs=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_the_default_target_is_the_top_prediction_at_each_position(
    name: str, model_of: Models, oracle_for: Oracles
) -> None:
    logits = asked(model_of(name), "block", target=None, contrast=None, positions="all").one("logits")
    oracle = oracle_for(name)
    assert logits["position"] == list(range(len(oracle.tokens)))
    assert logits["target_id"] == oracle.raw_logits.argmax(-1).tolist()


@pytest.mark.parametrize("name", ["gpt2", "llama", "olmo2"])
def test_any_direction_is_attributed(name: str, model_of: Models, oracle_for: Oracles) -> None:
    oracle = oracle_for(name)
    vector = torch.randn(oracle.residual.shape[1], generator=torch.Generator().manual_seed(5))
    found = answer(
        Dla(), model_of(name), {"prompt": TEXT, "unit": "head", "direction": "probe"}, probe=vector
    )
    columns, direction = found.one("contributions"), vector.double()
    values = rows(columns, len(oracle.tokens) - 1)
    expected = {key: float(oracle.contribution(write, direction)[-1]) for key, write in oracle.writes("head")}
    tolerance = limit(list(expected.values()))
    for key, value in expected.items():
        assert values[key] == pytest.approx(value, abs=tolerance), key
    whole = oracle.norm.linear(oracle.residual) @ direction
    whole = whole if oracle.norm.bias is None else whole + oracle.norm.bias @ direction
    assert found.one("summary")["logit"] == pytest.approx(float(whole[-1]), abs=tolerance)
    assert found.one("summary")["target_id"] is None
