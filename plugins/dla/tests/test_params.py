"""What is refused before anything runs, and the field it is laid to."""

from typing import Any

import pytest
import torch

from lensd_api import InvalidParams, InvalidTensor, Unit
from lensd_dla import DlaParams
from lensd_dla.items import Item, RefusedItem, read_items
from lensd_dla.readout import resolve_readout, resolve_token
from plugins.dla.tests.tiny_card import TinyCard, anatomy

CARD = TinyCard()
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": "a", "tokens": [1]}, "tokens"),
    ({"prompt": "a", "prompts": ["b"]}, "prompts"),
    ({"tokens": [1], "messages": [{"role": "user", "content": "a"}]}, "messages"),
    ({"tokens": []}, "tokens"),
    ({"tokens": [1, -1]}, "tokens[1]"),
    ({"tokens": [1.5]}, "tokens[0]"),
    ({"prompts": []}, "prompts"),
    ({"prompts": ["a", ""]}, "prompts[1]"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "messages[0].name"),
    ({"prompt": "a", "contrast": " b", "target": " b"}, "contrast"),
    ({"prompt": "a", "direction": "d", "target": " b"}, "target"),
    ({"prompt": "a", "direction": "d", "contrast": 3}, "contrast"),
    ({"prompt": "a", "direction": ""}, "direction"),
    ({"prompt": "a", "positions": []}, "positions"),
    ({"prompt": "a", "positions": "some"}, "positions"),
    ({"prompt": "a", "unit": "atom"}, "unit"),
    ({"prompt": "a", "top_k": 0}, "top_k"),
    ({"prompt": "a", "lens": "yes"}, "lens"),
    ({"prompt": "a", "lens_top_k": 1000}, "lens_top_k"),
    ({"prompt": "a", "direct_effect": 1}, "direct_effect"),
    ({"prompt": "a", "colour": "red"}, "colour"),
]


@pytest.mark.parametrize(("values", "field"), REFUSED, ids=[str(values) for values, _ in REFUSED])
def test_wrong_parameters_name_their_field(values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        DlaParams.parse(values)
    # Of a union, each arm that was tried is a path of its own below the field.
    assert any(v.field == field or v.field.startswith(f"{field}.") or v.field.startswith(f"{field}[")
               for v in refused.value.violations), refused.value.violations  # fmt: skip


def test_every_conflict_is_listed_at_once() -> None:
    with pytest.raises(InvalidParams) as refused:
        DlaParams.parse({"prompt": "a", "tokens": [1], "direction": "d", "target": 1, "contrast": 1})
    fields = [v.field for v in refused.value.violations]
    assert fields == ["tokens", "target", "contrast", "contrast"]


def test_numbers_of_a_struct_are_token_ids() -> None:
    params = DlaParams.parse({"tokens": [1.0, 2.0], "target": 3.0, "positions": [-1.0], "top_k": 5.0})
    assert (params.tokens, params.target, params.positions, params.top_k) == ((1, 2), 3, (-1,), 5)


def test_a_digit_in_quotes_is_text() -> None:
    assert DlaParams.parse({"prompt": "a", "target": "3"}).target == "3"


def test_a_target_of_several_tokens_lists_its_pieces_and_what_would_do() -> None:
    with pytest.raises(InvalidParams, match=r"'Mary' is 2 tokens: 'Mar' \(\d+\), 'y' \(\d+\)") as refused:
        resolve_token("Mary", CARD, "target")
    assert [v.field for v in refused.value.violations] == ["target"]
    assert refused.value.reason == "TARGET_NOT_ONE_TOKEN"
    assert "' Mary', with a leading space, is one token" in str(refused.value)


def test_a_target_of_one_token_is_its_id() -> None:
    token = resolve_token(" Mary", CARD, "target")
    assert CARD.token_text(token) == " Mary"


@pytest.mark.parametrize("field", ["target", "contrast"])
def test_a_target_beyond_the_vocabulary_is_refused(field: str) -> None:
    with pytest.raises(InvalidParams, match="384") as refused:
        resolve_readout(DlaParams.parse({"prompt": "a", field: 384}), CARD, {})
    assert [v.field for v in refused.value.violations] == [field]


@pytest.mark.parametrize("field", ["target", "contrast"])
def test_a_text_whose_token_only_the_tokenizer_knows_is_refused(field: str) -> None:
    token = resolve_token(" Mary", CARD, "target")
    smaller = TinyCard(anatomy(frozenset(Unit), vocab_size=token))
    with pytest.raises(InvalidParams, match=f"token id {token} is out of range") as refused:
        resolve_readout(DlaParams.parse({"prompt": "a", field: " Mary"}), smaller, {})
    assert [v.field for v in refused.value.violations] == [field]


def test_a_contrast_that_is_the_target_by_another_name_is_refused() -> None:
    token = resolve_token(" Mary", CARD, "target")
    with pytest.raises(InvalidParams, match="zero everywhere"):
        resolve_readout(DlaParams.parse({"prompt": "a", "target": " Mary", "contrast": token}), CARD, {})


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.zeros(3), r"\[3\].*\[64\]"),
        (torch.zeros(1, 64), r"\[1, 64\].*\[64\]"),
        (torch.full((64,), torch.nan), "64 of 64 elements are NaN or infinite"),
        (torch.tensor([torch.inf] + [0.0] * 63), "1 of 64"),
        (torch.zeros(64, dtype=torch.bool), "real numbers"),
        (torch.zeros(64, dtype=torch.complex64), "real numbers"),
    ],
)
def test_a_wrong_direction_is_refused_with_what_is_wrong(tensor: torch.Tensor, says: str) -> None:
    params = DlaParams.parse({"prompt": "a", "direction": "d"})
    with pytest.raises(InvalidTensor, match=says) as refused:
        resolve_readout(params, CARD, {"d": tensor})
    assert [v.field for v in refused.value.violations] == ["tensors.d"]


def test_a_missing_direction_says_what_was_sent() -> None:
    params = DlaParams.parse({"prompt": "a", "direction": "d"})
    with pytest.raises(InvalidParams, match="no tensor named 'd'"):
        resolve_readout(params, CARD, {})


def test_a_tensor_that_nothing_uses_is_refused() -> None:
    with pytest.raises(InvalidTensor, match="'d' is not used"):
        resolve_readout(DlaParams.parse({"prompt": "a"}), CARD, {"d": torch.zeros(64)})


def test_a_direction_of_integers_is_taken() -> None:
    params = DlaParams.parse({"prompt": "a", "direction": "d"})
    read_out = resolve_readout(params, CARD, {"d": torch.ones(64, dtype=torch.int32)})
    assert read_out.direction is not None
    assert read_out.direction.dtype.is_floating_point


def test_token_ids_out_of_range_are_each_named() -> None:
    with pytest.raises(InvalidParams) as refused:
        list(read_items(DlaParams.parse({"tokens": [1, 384, 2, 9999]}), CARD))
    assert [v.field for v in refused.value.violations] == ["tokens[1]", "tokens[3]"]


def test_a_row_beyond_the_context_is_refused_with_both_numbers() -> None:
    with pytest.raises(InvalidParams, match="129 tokens, but the context holds 128"):
        list(read_items(DlaParams.parse({"tokens": [5] * 129}), CARD))


@pytest.mark.parametrize("position", [3, -4])
def test_a_position_outside_the_row_is_refused(position: int) -> None:
    with pytest.raises(InvalidParams, match="the row has 3 tokens") as refused:
        list(read_items(DlaParams.parse({"tokens": [5, 6, 7], "positions": [0, position]}), CARD))
    assert [v.field for v in refused.value.violations] == ["positions[1]"]


def test_positions_are_resolved_in_order_and_once() -> None:
    params = DlaParams.parse({"tokens": [5, 6, 7], "positions": [-1, 0, 2, -3]})
    assert list(read_items(params, CARD)) == [Item("", (5, 6, 7), (2, 0))]


def test_all_positions_are_every_one() -> None:
    (item,) = read_items(DlaParams.parse({"tokens": [5, 6, 7], "positions": "all"}), CARD)
    assert isinstance(item, Item)
    assert item.positions == (0, 1, 2)


def test_one_prompt_too_long_leaves_the_others() -> None:
    params = DlaParams.parse({"prompts": ["One", "x " * 400, "Two"]})
    first, second, third = read_items(params, CARD)
    assert isinstance(first, Item)
    assert isinstance(third, Item)
    assert isinstance(second, RefusedItem)
    assert (first.name, second.name, third.name) == ("0", "1", "2")
    assert [v.field for v in second.error.violations] == ["prompts[1]"]  # type: ignore[attr-defined]


def test_a_conversation_is_laid_out_by_the_template() -> None:
    params = DlaParams.parse({"messages": [{"role": "user", "content": "One"}]})
    (item,) = read_items(params, CARD)
    assert isinstance(item, Item)
    assert CARD.decode(item.tokens) == "<|bos|>user: One\nassistant:"
