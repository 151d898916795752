"""Rows that a model writes on: right, the same in any company, and gone when nobody waits for them."""

import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, cast

import pytest
import torch

from lensd_api import (
    Analyzer,
    Cancelled,
    Capture,
    Generated,
    InvalidRequest,
    ModelView,
    NewToken,
    Record,
    Row,
    Sampling,
    Site,
    Stack,
    StopReason,
)
from lensd_server.engine.anatomy.continuing import Continuation
from lensd_server.engine.anatomy.past import Slab
from lensd_server.engine.batching.batcher import Batcher, BatchLimits
from lensd_server.engine.batching.price import Price
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.events import Found
from lensd_server.engine.handle import AsyncHandle, BlockingHandle
from lensd_server.engine.sampling import Draw, choose_tokens, pick
from lensd_server.tiny_models import TINY

PROMPTS = [Row((5, 6, 7, 8)), Row((9, 10)), Row(tuple(range(20, 39))), Row((5, 6, 7, 8, 11))]
NEVER = Sampling(max_new_tokens=12, stop_tokens=())
SAMPLED = Sampling(max_new_tokens=12, stop_tokens=(), temperature=1.3, top_k=200, top_p=0.95, seed=7)
STATE = frozenset({Site.BLOCK_OUT})


@pytest.fixture
def open_batcher(tiny: Any) -> Iterator[Callable[..., Batcher]]:
    made: list[Batcher] = []

    def make(name: str = "llama", **limits: Any) -> Batcher:
        loaded = tiny(name)
        bounds = BatchLimits(**{"max_tokens": 512, "price": Price.linear(40.0, 1.0), **limits})
        made.append(Batcher(name, loaded.model, loaded.device, bounds))
        return made[-1]

    yield make
    for batcher in made:
        batcher.close()


@pytest.fixture
def handle_of(tiny: Any, open_batcher: Any) -> Callable[..., BlockingHandle]:
    def make(name: str = "llama", ticket: Ticket | None = None, **limits: Any) -> BlockingHandle:
        return BlockingHandle(tiny(name).card, open_batcher(name, **limits), ticket or Ticket())

    return make


def ended(events: Iterator[Any]) -> list[Generated[Any]]:
    """Of every row its end, in their order; the tokens told before must be the same."""
    told: dict[int, list[NewToken]] = {}
    found: dict[int, Generated[Any]] = {}
    for event in events:
        if isinstance(event, NewToken):
            assert event.row not in found
            told.setdefault(event.row, []).append(event)
        else:
            found[event.row] = event
            assert tuple(t.token for t in told[event.row]) == event.tokens
            assert tuple(t.logprob for t in told[event.row]) == event.logprobs
    return [found[row] for row in sorted(found)]


def written(events: Iterator[Any]) -> list[tuple[int, ...]]:
    """The tokens of every row."""
    return [one.tokens for one in ended(events)]


def transformers_greedy(module: Any, tokens: Sequence[int], count: int) -> tuple[int, ...]:
    with torch.inference_mode():
        ids = torch.tensor([tokens])
        whole = module.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return tuple(whole[0, len(tokens) :].tolist())


def slabs() -> int:
    gc.collect()
    return sum(type(found) is Slab for found in gc.get_objects())


@pytest.mark.parametrize("name", sorted(TINY))
def test_greedy_is_what_transformers_generates(handle_of: Any, tiny: Any, name: str) -> None:
    found = ended(handle_of(name).generate(PROMPTS, NEVER))
    for row, one in zip(PROMPTS, found, strict=True):
        assert one.tokens == transformers_greedy(tiny(name).model.module, row.tokens, 12)
        assert one.stop is StopReason.MAX_NEW_TOKENS


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bloom", "mixtral"])
@pytest.mark.parametrize("sampling", [NEVER, SAMPLED], ids=["greedy", "sampled"])
def test_together_equals_alone(handle_of: Any, name: str, sampling: Sampling) -> None:
    handle = handle_of(name)
    together = ended(handle.generate(PROMPTS, sampling, Capture(STATE)))
    for i, (row, one) in enumerate(zip(PROMPTS, together, strict=True)):
        own = Sampling(
            12, sampling.temperature, sampling.top_k, sampling.top_p, seed=sampling.seed + i, stop_tokens=()
        )
        (alone,) = ended(handle.generate([row], own, Capture(STATE)))
        assert one.tokens == alone.tokens
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(alone.logprobs))
        for mine, theirs in ((one.before, alone.before), (one.after, alone.after)):
            torch.testing.assert_close(mine[Site.BLOCK_OUT], theirs[Site.BLOCK_OUT], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", [(-1,), (0, -1), "all"])
def test_the_states_before_and_after_are_those_of_a_plain_forward(handle_of: Any, positions: Any) -> None:
    handle, capture = handle_of("gpt2"), Capture(STATE, positions=positions)
    for row, one in zip(PROMPTS, ended(handle.generate(PROMPTS, NEVER, capture)), strict=True):
        whole = Row((*row.tokens, *one.tokens))
        (before,), (after,) = handle.forward([row], capture), handle.forward([whole], capture)
        for found, expected in ((one.before, before), (one.after, after)):
            assert found.positions == expected.positions
            torch.testing.assert_close(found[Site.BLOCK_OUT], expected[Site.BLOCK_OUT], rtol=1e-4, atol=1e-5)


def test_logprobs_are_those_of_the_whole_text(handle_of: Any) -> None:
    handle = handle_of()
    for row, one in zip(PROMPTS, ended(handle.generate(PROMPTS, SAMPLED)), strict=True):
        (expected,) = handle.logprobs([Row((*row.tokens, *one.tokens))])
        torch.testing.assert_close(torch.tensor(one.logprobs), expected[-12:], rtol=1e-4, atol=1e-5)


def test_each_token_is_read_once(handle_of: Any) -> None:
    ticket = Ticket()
    ended(handle_of(ticket=ticket).generate(PROMPTS[:1], NEVER, Capture(STATE)))
    # The prompt, shared by the state before; all new tokens, the last of them for the state after.
    assert ticket.usage.tokens - ticket.usage.reused_tokens == 4 + 12


def test_seeds_reproduce_and_differ(handle_of: Any) -> None:
    handle = handle_of()
    first, second = (ended(handle.generate(PROMPTS, SAMPLED)) for _ in range(2))
    assert [one.tokens for one in first] == [one.tokens for one in second]
    other = ended(handle.generate(PROMPTS, Sampling(12, 1.3, seed=99, stop_tokens=())))
    assert [one.tokens for one in first] != [one.tokens for one in other]


def test_a_masked_row_is_written_on_as_if_the_span_were_removed(handle_of: Any) -> None:
    removed = Row((5, 6, 20, 21, 7), attention_mask=(1, 1, 0, 0, 1), position_ids=(0, 1, 1, 1, 2))
    with_hole, without = ended(handle_of().generate([removed, Row((5, 6, 7))], NEVER))
    assert with_hole.tokens == without.tokens


def test_a_row_ends_with_a_stop_token(handle_of: Any) -> None:
    handle = handle_of()
    (free,) = ended(handle.generate(PROMPTS[:1], NEVER))
    token = free.tokens[3]
    place = free.tokens.index(token)
    (one,) = ended(handle.generate(PROMPTS[:1], Sampling(12, stop_tokens=(token,))))
    assert (one.stop, one.tokens) == (StopReason.END_TOKEN, free.tokens[: place + 1])
    assert one.text == handle.decode(free.tokens[:place])


def test_a_row_ends_with_the_models_own_end(handle_of: Any, tiny: Any) -> None:
    (end,) = tiny("llama").card.end_tokens
    assert end == tiny("llama").model.module.config.eos_token_id
    # Drawn wildly, some row of many ends by itself.
    found = ended(handle_of().generate([Row((5, 6))] * 64, Sampling(90, temperature=50.0)))
    finished = [one for one in found if one.stop is StopReason.END_TOKEN]
    assert finished
    assert all(one.tokens[-1] == end for one in finished)


def test_a_row_ends_with_a_stop_text_that_several_tokens_make(handle_of: Any) -> None:
    handle = handle_of()
    (free,) = ended(handle.generate(PROMPTS[:1], NEVER))
    stop = handle.decode(free.tokens)[2:6]
    (one,) = ended(handle.generate(PROMPTS[:1], Sampling(12, stop_tokens=(), stop_texts=("no such", stop))))
    assert one.stop is StopReason.STOP_TEXT
    assert one.text == handle.decode(free.tokens).partition(stop)[0]
    assert one.tokens == free.tokens[: len(one.tokens)]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("length", [120, 127, 128])
def test_a_row_ends_where_the_context_does(handle_of: Any, name: str, length: int) -> None:
    handle = handle_of(name)
    assert handle.anatomy.context_length == 128
    (one,) = ended(handle.generate([Row((5,) * length)], Sampling(50, stop_tokens=()), Capture(STATE)))
    assert one.stop is StopReason.CONTEXT
    assert len(one.tokens) == max(1, 128 - length)
    assert one.before is not None
    assert (one.after is None) == (length == 128)


def test_a_model_that_cannot_read_on_writes_the_same(handle_of: Any, monkeypatch: Any) -> None:
    expected = ended(handle_of("gpt2").generate(PROMPTS, SAMPLED))
    monkeypatch.setattr(
        "lensd_server.engine.batching.execution.check_continuation", lambda _: Continuation(problem="no")
    )
    found = ended(handle_of("gpt2").generate(PROMPTS, SAMPLED))
    assert [one.tokens for one in found] == [one.tokens for one in expected]


@pytest.mark.parametrize("room", [1, 40])
def test_little_room_for_keys_and_values_makes_it_slower_never_wrong(handle_of: Any, room: int) -> None:
    expected = ended(handle_of().generate(PROMPTS, NEVER))
    found = ended(handle_of(max_cache_bytes=room * 768).generate(PROMPTS, NEVER))
    assert [one.tokens for one in found] == [one.tokens for one in expected]


async def test_both_faces_agree(tiny: Any, open_batcher: Any, handle_of: Any) -> None:
    handle = AsyncHandle(tiny("llama").card, open_batcher(), Ticket())
    found = [event async for event in handle.generate(PROMPTS, SAMPLED)]
    assert written(iter(found)) == written(handle_of().generate(PROMPTS, SAMPLED))


async def test_requests_that_come_meanwhile_join(tiny: Any, open_batcher: Any, handle_of: Any) -> None:
    """A generation and forwards of others at once give what each gives alone."""
    batcher, card = open_batcher(), tiny("llama").card
    one, other = Ticket(), Ticket()
    writing = AsyncHandle(card, batcher, one).generate(PROMPTS, NEVER)
    first = await anext(writing)
    (state,) = await AsyncHandle(card, batcher, other).forward([Row((40, 41, 42))], Capture(STATE))
    rest = [event async for event in writing]
    assert written(iter([first, *rest])) == written(handle_of().generate(PROMPTS, NEVER))
    (alone,) = handle_of().forward([Row((40, 41, 42))], Capture(STATE))
    torch.testing.assert_close(state[Site.BLOCK_OUT], alone[Site.BLOCK_OUT], rtol=1e-5, atol=1e-5)


def test_leaving_the_iterator_frees_queue_and_memory(handle_of: Any, open_batcher: Any, tiny: Any) -> None:
    before = slabs()
    batcher = open_batcher()
    events = BlockingHandle(tiny("llama").card, batcher, Ticket()).generate(
        PROMPTS, Sampling(100, stop_tokens=()), Capture(STATE)
    )
    next(events)
    events.close()
    batcher.settle()
    assert batcher.waiting() == (0, 0)
    assert slabs() == before


def test_a_cancel_in_the_middle_frees_queue_and_memory(open_batcher: Any, tiny: Any) -> None:
    before = slabs()
    batcher, ticket = open_batcher(), Ticket()
    events = BlockingHandle(tiny("llama").card, batcher, ticket).generate(
        PROMPTS, Sampling(100, stop_tokens=()), Capture(STATE)
    )
    next(events)
    threading.Thread(target=ticket.cancel).start()
    with pytest.raises(Cancelled):
        for _ in events:
            pass
    batcher.settle()
    assert batcher.waiting() == (0, 0)
    assert batcher.standing(ticket) == (0, 0)
    del events
    assert slabs() == before


class Writes(Analyzer):
    """Writes for as long as it may."""

    name = "writes"

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
        number = 0
        async for event in ctx.model.generate([Row((5, 6, 7))], Sampling(100, stop_tokens=())):
            number += 1
            yield Record("event", {"token": getattr(event, "token", -1)}, item=str(number))


async def test_a_caller_who_goes_away_leaves_nothing_behind(rig: Any) -> None:
    before = slabs()
    async with aclosing(rig.start(Writes(), model="llama")) as events:
        found = 0
        async for event in events:
            found += isinstance(event, Found)
            if found == 3:
                break
    await rig.settled()
    resident = rig.resident("llama")
    resident.batcher.settle()
    assert resident.batcher.waiting() == (0, 0)
    assert rig.residency.leases("llama") == 0
    assert slabs() == before


@pytest.mark.parametrize(
    ("sampling", "says"),
    [
        (Sampling(max_new_tokens=0), "max_new_tokens"),
        (Sampling(temperature=-1.0), "temperature"),
        (Sampling(temperature=float("nan")), "temperature"),
        (Sampling(top_k=-1), "top_k"),
        (Sampling(top_p=0.0), "top_p"),
        (Sampling(seed=-1), "seed"),
        (Sampling(stop_tokens=(10**6,)), "stop_tokens"),
        (Sampling(stop_texts=("",)), "stop_texts"),
    ],
)
def test_impossible_sampling_is_refused(handle_of: Any, sampling: Sampling, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        next(handle_of().generate(PROMPTS, sampling))


def test_no_rows_write_nothing(handle_of: Any) -> None:
    assert list(handle_of().generate([])) == []


# How a token is drawn


def drawn(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """How often each token is drawn over an even grid of 4,000 chances."""
    draws = [Draw(temperature, top_k, top_p, (i + 0.5) / 4000) for i in range(4000)]
    counts = torch.bincount(pick(logits.expand(4000, -1), draws), minlength=logits.shape[-1])
    return counts.double() / 4000


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 3, 1.0), (1.0, 0, 0.7), (1.5, 4, 0.8)],
)
def test_tokens_are_drawn_as_often_as_they_should(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.tensor([[0.3, 2.0, -1.0, 1.9, 0.0, 1.0, -5.0]])
    p = (logits[0].double() / temperature).softmax(-1)
    order = p.argsort(descending=True).tolist()
    kept = order[: top_k or len(order)]
    mass = float(p[kept].sum())
    while len(kept) > 1 and float(p[kept[:-1]].sum()) / mass >= top_p:
        kept.pop()
    expected = torch.zeros(7, dtype=torch.float64)
    expected[kept] = p[kept] / p[kept].sum()
    torch.testing.assert_close(drawn(logits, temperature, top_k, top_p), expected, rtol=0, atol=5e-4)


def test_greedy_and_sampled_rows_share_a_batch() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.5]]).expand(3, -1)
    draws = [Draw(0.0, 0, 1.0, 0.0), Draw(1.0, 0, 1.0, 0.0), Draw(1.0, 1, 1.0, 0.999)]
    assert pick(logits, draws).tolist() == [1, 0, 1]


def test_choices_do_not_depend_on_the_chunk(monkeypatch: Any) -> None:
    class Head:
        def logits(self, residual: torch.Tensor) -> torch.Tensor:
            return residual

    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(0))
    draws = [Draw(float(i % 2), 0, 1.0, 0.3) for i in range(5)]
    stack = Stack({Site.FINAL_RESIDUAL: logits}, draws, [(0,)] * 5, [(1,)] * 5, ())
    whole = choose_tokens(stack, cast("ModelView", Head()))
    monkeypatch.setattr("lensd_server.engine.logprobs.CHUNK", 2)
    assert choose_tokens(stack, cast("ModelView", Head())) == whole
