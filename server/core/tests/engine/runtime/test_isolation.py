"""Under load every caller gets the numbers of its own prompt."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
import torch

from lensd_api import Analyzer, BaseParams, Capture, ModelView, Record, Reduce, Row, Site, Stack, Tensor
from lensd_server.engine.events import Found

SITES = frozenset({Site.FINAL_RESIDUAL, Site.HEADS, Site.LOGITS})


def scaled(stack: Stack, view: ModelView) -> Sequence[torch.Tensor]:
    found = stack.values[Site.FINAL_RESIDUAL]
    return [found[stack.slice_of(i)] * stack.args[i] for i in range(len(stack))]


class Prompted(BaseParams):
    prompt: str
    scale: float = 1.0


class Numbers(Analyzer):
    """Captures, reduces and log-probabilities of one prompt."""

    name = "numbers"
    Params = Prompted

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
        row = Row(ctx.model.encode(params.prompt))
        captured, (reduced,), (logprobs,), (statistics,) = await asyncio.gather(
            ctx.model.forward([row], Capture(SITES, positions=(0, -1))),
            ctx.model.forward(
                [row], Capture(frozenset({Site.FINAL_RESIDUAL}), reduce=Reduce(scaled, params.scale))
            ),
            ctx.model.logprobs([row]),
            ctx.model.token_statistics([row]),
        )
        for site, values in captured[0].values.items():
            yield Tensor(site.value, values)
        yield Tensor("reduced", reduced)
        yield Tensor("logprobs", logprobs)
        yield Tensor("entropy", statistics.entropy)


class PlainNumbers(Numbers):
    """The same on a thread."""

    name = "plain-numbers"

    def analyze(self, params: Any, ctx: Any) -> Iterator[Any]:
        row = Row(ctx.model.encode(params.prompt))
        (captured,) = ctx.model.forward([row], Capture(SITES, positions=(0, -1)))
        for site, values in captured.values.items():
            yield Tensor(site.value, values)
        reduce = Reduce(scaled, params.scale)
        yield Tensor(
            "reduced", ctx.model.forward([row], Capture(frozenset({Site.FINAL_RESIDUAL}), reduce=reduce))[0]
        )
        yield Tensor("logprobs", ctx.model.logprobs([row])[0])
        yield Tensor("entropy", ctx.model.token_statistics([row])[0].entropy)


def prompts(count: int) -> list[str]:
    words = [
        "the",
        "capital",
        "of",
        "France",
        "is",
        "Paris",
        "when",
        "Mary",
        "and",
        "John",
        "went",
        "to",
        "a",
        "store",
        "one",
        "two",
        "three",
    ]
    return [
        " ".join(words[(i * 7 + j) % len(words)] for j in range(1 + i % 13)) + f" {i}" for i in range(count)
    ]


@pytest.mark.parametrize("model", ["llama", "gpt2", "mixtral"])
async def test_64_prompts_from_16_callers_each_equal_themselves_alone(make_rig: Any, model: str) -> None:
    rig = make_rig((model,))
    # Every prompt twice, asked for differently: rows of the two may share a forward, results never.
    wanted = [{"prompt": text, "scale": 1.0 + i} for i, text in enumerate(prompts(32) * 2)]
    alone = [await rig.results(Numbers(), **params) for params in wanted]
    queue = list(enumerate(wanted))
    together: dict[int, list[Any]] = {}
    largest = shared = 0

    async def caller(number: int) -> None:
        nonlocal largest, shared
        while queue:
            index, params = queue.pop()
            kind = PlainNumbers if number % 4 == 0 else Numbers
            events = await rig.events(kind(), **params)
            together[index] = [event.result for event in events if isinstance(event, Found)]
            largest = max(largest, events[-1].usage.largest_batch)
            shared += events[-1].usage.shared_rows

    await asyncio.gather(*(caller(number) for number in range(16)))
    assert largest > 1, "nothing was batched, so nothing was tested"
    assert shared, "nothing was shared, so nothing was tested"
    for index, expected in enumerate(alone):
        for one, other in zip(expected, together[index], strict=True):
            assert one.name == other.name
            limit = 1e-5 * max(1e-30, float(one.data.abs().max()) if one.data.numel() else 0.0)
            assert torch.allclose(one.data, other.data, rtol=0, atol=limit), (index, one.name)


async def test_results_do_not_hold_the_batch_or_the_model(rig: Any) -> None:
    """What an analyzer keeps, and even changes, is its own."""

    def weights(stack: Stack, view: ModelView) -> Sequence[torch.Tensor]:
        return [view.unembed for _ in range(len(stack))]

    class Vandal(Analyzer):
        """Writes over all it is given."""

        name = "vandal"

        async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
            row = Row((5, 6, 7))
            (captured,) = await ctx.model.forward([row], Capture(SITES))
            (stolen,) = await ctx.model.forward([row], Capture(SITES, reduce=Reduce(weights)))
            held = captured[Site.FINAL_RESIDUAL]
            yield Record("r", {"bytes": held.untyped_storage().nbytes(), "own": held.nbytes})
            held.zero_()
            stolen.zero_()

    before = await rig.results(Numbers(), prompt="The capital")
    (record,) = await rig.results(Vandal())
    assert record.values["bytes"] == record.values["own"]
    after = await rig.results(Numbers(), prompt="The capital")
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one.data, other.data)
