"""Rows that are the same sequence run once."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import torch

from lensd_api import Analyzer, Capture, ModelView, Record, Reduce, Row, Site, Stack
from lensd_server.engine.batching.batch import PreparedRow, Step
from lensd_server.engine.batching.sharing import admit_sharers, share
from lensd_server.engine.batching.ticket import Ticket

RESIDUAL = frozenset({Site.FINAL_RESIDUAL})


def scaled(stack: Stack, view: ModelView) -> Sequence[torch.Tensor]:
    found = stack.values[Site.FINAL_RESIDUAL]
    return [found[stack.slice_of(i)] * stack.args[i] for i in range(len(stack))]


def scale(factor: float, positions: Any = (-1,)) -> Capture[Any]:
    return Capture(RESIDUAL, positions=positions, reduce=Reduce(scaled, factor))


def row(*tokens: int, **special: Any) -> Step:
    return Step.whole(PreparedRow(tokens, (len(tokens) - 1,), **special))


def test_only_equal_sequences_share() -> None:
    rows = [
        row(1, 2),
        row(1, 2, attention_mask=(1, 0)),
        row(1, 2, position_ids=(0, 2)),
        row(1, 2, 3),
        Step.whole(PreparedRow((1, 2), (0, 1))),
        row(1, 2, attention_mask=(1, 0)),
        row(1, 2, attention_mask=(1, 1), position_ids=(0, 1)),
    ]
    assert share(rows) == [[0, 4, 6], [1, 5], [2], [3]]


def test_sharing_does_not_capture_more_positions_than_a_batch_may_hold() -> None:
    rows = [Step.whole(PreparedRow((1, 2, 3, 4), (0, 1, 2, 3))) for _ in range(10)]
    assert admit_sharers(rows, share(rows), 12) == [0, 1, 2]
    assert admit_sharers(rows, share(rows), 2) == [0]


def test_equal_prompts_of_different_callers_run_once(bench: Any) -> None:
    bench.occupy()
    mine, other = Ticket(), Ticket()
    futures = [
        bench.submit([7, 8, 9], ticket=mine),
        bench.submit([7, 8, 9], ticket=other),
        bench.submit([7, 8]),
    ]
    bench.forwards.release()
    first, second, _ = [bench.outcome(future) for future in futures]
    assert sorted(bench.forwards.batches[1]) == [(7, 8), (7, 8, 9)]
    assert torch.equal(first.results[0][Site.FINAL_RESIDUAL], second.results[0][Site.FINAL_RESIDUAL])
    assert (mine.usage.rows, mine.usage.shared_rows) == (1, 0)
    assert (other.usage.rows, other.usage.shared_rows) == (1, 1)
    assert other.usage.largest_batch == 2


def test_what_one_caller_does_to_a_shared_result_is_not_seen_by_another(bench: Any) -> None:
    bench.occupy()
    futures = [bench.submit([7, 8, 9]), bench.submit([7, 8, 9])]
    bench.forwards.release()
    one, other = [bench.outcome(future).results[0][Site.FINAL_RESIDUAL] for future in futures]
    kept = other.clone()
    one.zero_()
    assert torch.equal(other, kept)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_sharers_get_what_they_would_get_alone(make_bench: Any, name: str) -> None:
    """Different sites, positions, layers, reduces and arguments on one sequence, beside other rows."""
    quiet, bench = make_bench(model=name), make_bench(model=name)
    sites = frozenset({Site.HEADS, Site.ATTENTION, Site.VALUES, Site.LOGITS, Site.FINAL_RESIDUAL})
    captures: list[Capture[Any]] = [
        Capture(sites, positions="all"),
        Capture(sites, positions=(1,), layers=(1,)),
        Capture(sites, positions=(-1, 0)),
        Capture(sites, positions=(-1, 0)),
        scale(2.0),
        scale(3.0),
        scale(4.0, positions=(0, 1)),
    ]
    prompts = [(7, 8, 9, 10), (7, 8, 9)]
    wanted = [(tokens, capture) for capture in captures for tokens in prompts]
    alone = [quiet.outcome(quiet.submit(tokens, capture=capture)).results[0] for tokens, capture in wanted]
    bench.occupy()
    futures = [bench.submit(tokens, capture=capture) for tokens, capture in wanted]
    bench.forwards.release()
    together = [bench.outcome(future).results[0] for future in futures]
    assert sorted(bench.forwards.batches[-1]) == sorted(prompts)
    for one, other in zip(alone, together, strict=True):
        pairs = [(one, other)] if isinstance(one, torch.Tensor) else [(one[s], other[s]) for s in one.values]
        for mine, theirs in pairs:
            torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-5 * max(1e-30, float(mine.abs().max())))


def test_one_sharer_that_is_cancelled_takes_nothing_from_the_other(bench: Any) -> None:
    bench.occupy()
    gone = Ticket()
    futures = [bench.submit([7, 8], ticket=gone), bench.submit([7, 8])]
    gone.cancel()
    bench.forwards.release()
    assert bench.outcome(futures[0]).error is not None
    assert bench.outcome(futures[1]).error is None


def test_a_fault_that_only_one_sharer_causes_spares_the_other(bench: Any) -> None:
    def touchy(stack: Stack, view: ModelView) -> Sequence[int]:
        if "bad" in stack.args:
            raise ValueError
        return [1] * len(stack)

    bench.occupy()
    futures = [
        bench.submit([7, 8], capture=Capture(RESIDUAL, reduce=Reduce(touchy, arg))) for arg in ("good", "bad")
    ]
    bench.forwards.release()
    good, bad = [bench.outcome(future) for future in futures]
    assert good.error is None
    assert bad.error is not None


def test_a_batch_that_runs_out_of_memory_is_narrowed_down_within_a_lane(bench: Any) -> None:
    bench.occupy()
    futures = [bench.submit([7, 8], capture=scale(float(i))) for i in range(4)]
    bench.forwards.fault = lambda rows: torch.OutOfMemoryError() if len(bench.forwards.batches) < 3 else None
    bench.forwards.release()
    assert [bench.outcome(future).error for future in futures] == [None] * 4


async def test_one_analysis_shares_rows_with_itself(rig: Any) -> None:
    class Twice(Analyzer):
        """Asks for the same row several times."""

        name = "twice"

        async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
            found = await ctx.model.forward([Row((5, 6, 7))] * 4, Capture(RESIDUAL))
            yield Record("r", {"rows": len(found)})

    events = await rig.events(Twice())
    assert (events[-1].usage.rows, events[-1].usage.shared_rows) == (4, 3)
