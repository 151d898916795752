"""An analysis as a caller sees it: items, groups of positions, every kind of input."""

from collections.abc import Callable

import pytest
import torch

from lensd_api import InvalidParams, InvalidTensor, Text
from lensd_api.testing import differences
from lensd_dla import Dla, DlaParams, plan, run
from tests.numerics.conftest import TEXT
from tests.numerics.direct import DirectModel, answer

Models = Callable[[str], DirectModel]


@pytest.mark.parametrize("unit", ["component", "head", "source"])
def test_positions_in_groups_give_what_one_go_gives(
    unit: str, model_of: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("gpt2")
    asked = {
        "prompt": TEXT,
        "unit": unit,
        "positions": "all",
        "lens": True,
        "direct_effect": True,
        "top_k": 4,
    }
    whole = answer(Dla(), model, asked)
    for module in (plan, run):
        monkeypatch.setattr(module, "CAPTURE_BUDGET_BYTES", 20_000)
    before = model.forwards
    grouped = answer(Dla(), model, asked)
    assert model.forwards - before > 2
    tables = [r for r in grouped.results if r.name == "contributions"]
    assert len(tables) > 2
    assert [table.last for table in tables] == [False] * (len(tables) - 1) + [True]  # type: ignore[union-attr]
    for name in ("contributions", "logits", "lens"):
        one, other = whole.one(name), grouped.one(name)
        assert one.keys() == other.keys()
        for key in one.keys() - {"kind", "target", "token"}:
            assert other[key] == pytest.approx(one[key], abs=1e-5), key
    others = ("contributions", "logits", "lens")
    rest = [[r for r in found.results if r.name not in others] for found in (whole, grouped)]
    assert differences(rest[0], rest[1]) == []
    total = len(model.encode(TEXT))
    done = [d for d, _ in grouped.context.progressed]
    assert done == sorted(set(done))
    assert grouped.context.progressed[-1] == (total, total)


def test_each_prompt_is_an_item_equal_to_itself_alone(model_of: Models) -> None:
    model, prompts = model_of("llama"), ["One, two", TEXT, "The capital of France is"]
    together = answer(Dla(), model, {"prompts": prompts, "unit": "head"})
    assert [r.item for r in together.results if r.name == "summary"] == ["0", "1", "2"]
    for number, prompt in enumerate(prompts):
        alone = answer(Dla(), model, {"prompt": prompt, "unit": "head"})
        mine = together.one("contributions", str(number))["value"]
        assert mine == pytest.approx(alone.one("contributions")["value"], abs=1e-5)


def test_a_prompt_that_is_too_long_fails_alone(model_of: Models) -> None:
    found = answer(Dla(), model_of("llama"), {"prompts": ["One", "word " * 500, "Two"]})
    assert list(found.errors()) == ["1"]
    assert found.errors()["1"].error.status == "INVALID_ARGUMENT"
    assert [r.item for r in found.results if r.name == "summary"] == ["0", "2"]


def test_prompts_that_all_fail_are_all_said_to(model_of: Models) -> None:
    found = answer(Dla(), model_of("llama"), {"prompts": ["word " * 500, "two " * 600]})
    assert list(found.errors()) == ["0", "1"]
    assert len(found.results) == 2


def test_a_position_that_one_prompt_lacks_fails_that_one(model_of: Models) -> None:
    found = answer(Dla(), model_of("llama"), {"prompts": ["One", TEXT], "positions": [5]})
    assert list(found.errors()) == ["0"]
    assert found.one("summary", "1")["position"] == 5


def test_tokens_text_and_chat_are_the_same_row(model_of: Models) -> None:
    model = model_of("llama")
    text = answer(Dla(), model, {"prompt": TEXT})
    tokens = answer(Dla(), model, {"tokens": list(model.encode(TEXT))})
    assert differences(text.results, tokens.results) == []
    chat = answer(Dla(), model, {"messages": [{"role": "user", "content": "One"}]})
    assert chat.one("summary")["token_ids"] == list(model.encode("<|bos|>user: One\nassistant:"))


def test_the_summary_tells_the_tokens_apart(model_of: Models) -> None:
    summary = answer(Dla(), model_of("gpt2"), {"prompt": TEXT, "target": " Mary", "contrast": " John"}).one(
        "summary"
    )
    assert "".join(summary["tokens"]) == TEXT
    assert (summary["target"], summary["contrast"]) == (" Mary", " John")
    assert summary["position"] == len(summary["token_ids"]) - 1
    assert summary["norm"] == {"kind": "layernorm", "gain": "w", "has_bias": True, "eps": pytest.approx(1e-5)}
    assert summary["units"] == ["component"] * 3
    assert "nmae" not in summary


def test_sources_are_also_told_on_the_text(model_of: Models) -> None:
    found = answer(Dla(), model_of("llama"), {"prompt": TEXT, "unit": "source", "positions": [2, -1]})
    told, sources = found.one("sources_text"), found.one("sources")
    assert isinstance(told, Text)
    assert told.text == TEXT
    assert [told.text[span.start : span.end] for span in told.spans] == found.one("summary")["tokens"]
    scores = torch.tensor([span.score for span in told.spans])
    assert torch.allclose(scores, sources.data[-1].sum((0, 1)), atol=1e-5)
    assert torch.allclose(sources.data.sum(-1), found.one("heads").data, atol=1e-5)
    # attention cannot look ahead
    assert not bool(sources.data[0, :, :, 3:].any())


def test_more_sources_than_there_are_leave_out_the_future(model_of: Models) -> None:
    found = answer(
        Dla(), model_of("llama"), {"prompt": TEXT, "unit": "source", "positions": [1], "top_k": 10_000}
    )
    columns = found.one("contributions")
    places = [s for s in columns["source"] if s is not None]
    assert len(places) == 3 * 4 * 2
    assert set(places) == {0, 1}


def test_a_wrong_direction_is_refused_before_anything_runs(model_of: Models) -> None:
    model = model_of("llama")
    before = model.forwards
    with pytest.raises(InvalidTensor, match=r"\[3\].*\[64\]"):
        answer(Dla(), model, {"prompt": TEXT, "direction": "d"}, d=torch.zeros(3))
    with pytest.raises(InvalidParams, match="tokens"):
        answer(Dla(), model, {"prompt": TEXT, "target": "not one token"})
    assert model.forwards == before


def test_the_estimate_is_what_runs(model_of: Models) -> None:
    model = model_of("gpt2")
    length = len(model.encode(TEXT))
    cost = Dla().estimate(DlaParams.parse({"prompt": TEXT, "unit": "head"}), model)
    assert cost.tokens == length
    assert cost.bytes == 4 * (384 + 3 * 64 + 3 * (64 + 64 + 64))
    several = Dla().estimate(DlaParams.parse({"prompts": [TEXT, TEXT, "x " * 500]}), model)
    assert several.tokens == 2 * length


def test_an_estimate_refuses_what_cannot_run(model_of: Models) -> None:
    with pytest.raises(InvalidParams):
        Dla().estimate(DlaParams.parse({"prompt": "word " * 500}), model_of("gpt2"))
