"""What an analyzer sees of a model."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any, cast

import pytest
import torch

from lensd_api import Cancelled, Capture, InvalidRequest, ModelView, RequirementNotMet, Row, Site, Stack
from lensd_server.engine import logprobs as logprobs_module
from lensd_server.engine.batching.batcher import Batcher, BatchLimits
from lensd_server.engine.batching.price import Price
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.handle import AsyncHandle, BlockingHandle

LOGITS = frozenset({Site.LOGITS})


@pytest.fixture(params=["llama", "gpt2"])
def loaded(request: Any, tiny: Any) -> Any:
    return tiny(request.param)


@pytest.fixture
def batcher(loaded: Any) -> Iterator[Batcher]:
    made = Batcher(
        "m", loaded.model, loaded.device, BatchLimits(max_tokens=512, price=Price.linear(100.0, 1.0))
    )
    yield made
    made.close()


@pytest.fixture
def handle(loaded: Any, batcher: Batcher) -> BlockingHandle:
    return BlockingHandle(loaded.card, batcher, Ticket())


def full_logits(loaded: Any, tokens: tuple[int, ...]) -> torch.Tensor:
    with torch.inference_mode():
        return loaded.model.module(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


def test_forward_gives_the_models_own_logits(handle: Any, loaded: Any) -> None:
    rows = [Row((5, 6, 7, 8)), Row((9, 10))]
    found = handle.forward(rows, Capture(LOGITS, positions="all"))
    for row, activations in zip(rows, found, strict=True):
        expected = full_logits(loaded, row.tokens)
        assert activations.positions == tuple(range(len(row.tokens)))
        torch.testing.assert_close(activations[Site.LOGITS], expected, rtol=1e-5, atol=1e-5)


def test_negative_positions_count_from_the_end(handle: Any, loaded: Any) -> None:
    (found,) = handle.forward([Row((5, 6, 7))], Capture(LOGITS, positions=(-1, 0)))
    assert found.positions == (2, 0)
    expected = full_logits(loaded, (5, 6, 7))[[2, 0]]
    torch.testing.assert_close(found[Site.LOGITS], expected, rtol=1e-5, atol=1e-5)


def test_layers_are_answered_in_ascending_order(handle: Any) -> None:
    (found,) = handle.forward([Row((5, 6))], Capture(frozenset({Site.BLOCK_OUT}), layers=(2, 0)))
    assert found.layers == (0, 2)
    assert found[Site.BLOCK_OUT].shape == (1, 2, 64)


def test_attention_is_cut_to_the_rows_own_length(handle: Any) -> None:
    sites = frozenset({Site.ATTENTION, Site.VALUES})
    long, short = handle.forward([Row((5, 6, 7, 8, 9)), Row((5, 6))], Capture(sites))
    assert long[Site.ATTENTION].shape[-1] == 5
    assert short[Site.ATTENTION].shape[-1] == 2
    assert short[Site.VALUES].shape[0] == 2
    torch.testing.assert_close(short[Site.ATTENTION].sum(-1), torch.ones(1, 3, 4))


def test_a_masked_span_with_renumbered_positions_is_as_if_removed(handle: Any) -> None:
    removed = Row((5, 6, 20, 21, 7), attention_mask=(1, 1, 0, 0, 1), position_ids=(0, 1, 1, 1, 2))
    (masked,), (alone,) = (handle.forward([row], Capture(LOGITS)) for row in (removed, Row((5, 6, 7))))
    torch.testing.assert_close(masked[Site.LOGITS], alone[Site.LOGITS], rtol=1e-4, atol=1e-5)


def test_logprobs_are_those_of_the_full_softmax(handle: Any, loaded: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(logprobs_module, "CHUNK", 3)
    rows = [Row((5, 6, 7, 8, 9, 10, 11)), Row((3,)), Row((9, 8))]
    found = handle.logprobs(rows)
    for row, values in zip(rows, found, strict=True):
        expected = full_logits(loaded, row.tokens).double().log_softmax(-1)
        chosen = expected[torch.arange(len(row.tokens) - 1), list(row.tokens[1:])]
        assert values.dtype == torch.float32
        torch.testing.assert_close(values.double(), chosen, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("vocab_size", "positions"), [(152_064, 441), (49_152, 1365), (10**6, 128)])
def test_a_gpu_takes_more_positions_at_once(loaded: Any, vocab_size: int, positions: int) -> None:
    """Every chunk reads the whole output head, which costs a GPU more than the positions do."""
    view = replace(loaded.model.view, anatomy=replace(loaded.model.anatomy, vocab_size=vocab_size))
    assert logprobs_module.positions_at_once(view, torch.device("cuda")) == positions
    assert logprobs_module.positions_at_once(view, torch.device("cpu")) == logprobs_module.CHUNK


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gemma2", "granite", "cohere"])
def test_token_statistics_are_those_of_the_full_logits(tiny: Any, monkeypatch: Any, name: str) -> None:
    """Against fp64 on the whole vocabulary, rows of several lengths in one batch and each by itself."""
    monkeypatch.setattr(logprobs_module, "CHUNK", 3)
    loaded = tiny(name)
    rows = [Row((5, 6, 7, 8, 9, 10, 11)), Row((3,)), Row((9, 8)), Row((9, 8, 30, 31))]
    batcher = Batcher(
        "m", loaded.model, loaded.device, BatchLimits(max_tokens=512, price=Price.linear(100.0, 1.0))
    )
    try:
        handle = BlockingHandle(loaded.card, batcher, Ticket())
        together = handle.token_statistics(rows)
        alone = [handle.token_statistics([row])[0] for row in rows]
    finally:
        batcher.close()
    for row, *found in zip(rows, together, alone, strict=True):
        logits = full_logits(loaded, row.tokens).double()[:-1]
        log_p = logits.log_softmax(-1)
        expected = {
            "logprob": log_p[torch.arange(len(logits)), list(row.tokens[1:])],
            "entropy": -(log_p.exp() * log_p).sum(-1),
            "logsumexp": logits.logsumexp(-1),
            "mean_logit": logits.mean(-1),
        }
        for statistics, (field, values) in product(found, expected.items()):
            given = getattr(statistics, field)
            assert given.dtype == torch.float32
            torch.testing.assert_close(given.double(), values, rtol=1e-5, atol=1e-5)


def test_a_logit_of_minus_infinity_does_not_spoil_the_entropy() -> None:
    class Closed:
        def logits(self, residual: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[0.0, 0.0, -torch.inf]]).expand(len(residual), 3)

    stack = Stack({Site.FINAL_RESIDUAL: torch.zeros(1, 4)}, [None], [(0,)], [(1, 1)], ())
    (found,) = logprobs_module.token_statistics(stack, cast("ModelView", Closed()))
    assert found.entropy.tolist() == pytest.approx([math.log(2)])


async def test_both_faces_agree(loaded: Any, batcher: Batcher, handle: Any) -> None:
    awaited = AsyncHandle(loaded.card, batcher, Ticket())
    row = Row((5, 6, 7))
    (one,) = await awaited.forward([row], Capture(LOGITS))
    (other,) = handle.forward([row], Capture(LOGITS))
    assert torch.equal(one[Site.LOGITS], other[Site.LOGITS])
    assert torch.equal((await awaited.logprobs([row]))[0], handle.logprobs([row])[0])
    (mine,), (theirs,) = await awaited.token_statistics([row]), handle.token_statistics([row])
    assert torch.equal(mine.entropy, theirs.entropy)


def test_no_rows_give_no_values(handle: Any) -> None:
    assert handle.forward([], Capture(LOGITS)) == []
    assert handle.logprobs([]) == []


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (Row(()), "no token"),
        (Row((5,) * 200), "context"),
        (Row((5, -1)), "token ids"),
        (Row((5, 100_000)), "token ids"),
        (Row((5, 6), attention_mask=(1,)), "attention_mask"),
        (Row((5, 6), attention_mask=(1, 2)), "attention_mask"),
        (Row((5, 6), position_ids=(0, 1, 2)), "position_ids"),
        (Row((5, 6), position_ids=(0, 5000)), "position_ids"),
    ],
)
def test_a_wrong_row_is_refused_before_it_is_queued(handle: Any, row: Row, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        handle.forward([row], Capture(LOGITS))


@pytest.mark.parametrize(
    "capture",
    [
        Capture(LOGITS, positions=(3,)),
        Capture(LOGITS, positions=(-4,)),
        Capture(frozenset({Site.BLOCK_OUT}), layers=(3,)),
        Capture(frozenset({Site.BLOCK_OUT}), layers=(-1,)),
    ],
)
def test_a_position_or_layer_that_does_not_exist_is_refused(handle: Any, capture: Any) -> None:
    with pytest.raises(InvalidRequest, match="does not exist"):
        handle.forward([Row((5, 6, 7))], capture)


def test_a_site_that_the_model_lacks_is_refused(handle: Any) -> None:
    with pytest.raises(RequirementNotMet):
        handle.forward([Row((5,))], Capture(frozenset({Site.EXPERT_WRITES})))


def test_a_cancelled_ticket_runs_nothing(loaded: Any, batcher: Batcher) -> None:
    ticket = Ticket()
    ticket.cancel()
    with pytest.raises(Cancelled):
        BlockingHandle(loaded.card, batcher, ticket).forward([Row((5,))], Capture(LOGITS))
    assert ticket.usage.rows == 0


@pytest.mark.parametrize("sites", [Site.LOGITS, "logits", frozenset({"logits "}), [Site.LOGITS]])
def test_what_is_no_set_of_sites_is_refused(handle: Any, sites: Any) -> None:
    with pytest.raises(InvalidRequest, match="Site"):
        handle.forward([Row((5,))], Capture(sites))
