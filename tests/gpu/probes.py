"""Analyzers that bring back what a device computes, and one that asks for too much of its memory."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import torch

from lensd_api import (
    Analyzer,
    BaseParams,
    Capture,
    Context,
    Generated,
    ModelView,
    Record,
    Reduce,
    RequirementNotMet,
    Result,
    Row,
    Sampling,
    Site,
    Stack,
    Table,
    Tensor,
)


class Sites(Analyzer):
    """Every site that the model offers, of every row at all positions."""

    name = "sites"

    class Params(BaseParams):
        rows: list[list[int]]
        gaps: bool = False

    async def analyze(self, params: Params, ctx: Context) -> AsyncIterator[Result]:
        rows = [_with_gap(tokens) if params.gaps else Row(tuple(tokens)) for tokens in params.rows]
        for site in Site:
            try:
                found = await ctx.model.forward(rows, Capture(frozenset({site}), positions="all"))
            except RequirementNotMet:
                continue
            for number, activations in enumerate(found):
                data = activations[site]
                yield Tensor(site.value, data.float() if data.is_floating_point() else data, item=str(number))


def _with_gap(tokens: Sequence[int]) -> Row:
    """The same without its second and third token: masked, and the positions after them renumbered."""
    seen = tuple(0 if place in (1, 2) else 1 for place in range(len(tokens)))
    places = tuple(max(0, sum(seen[: place + 1]) - 1) for place in range(len(tokens)))
    return Row(tuple(tokens), attention_mask=seen, position_ids=places)


class Statistics(Analyzer):
    """What the model says of each token of each row."""

    name = "statistics"

    class Params(BaseParams):
        rows: list[list[int]]

    async def analyze(self, params: Params, ctx: Context) -> AsyncIterator[Result]:
        rows = [Row(tuple(tokens)) for tokens in params.rows]
        for number, found in enumerate(await ctx.model.token_statistics(rows)):
            yield Table(
                "statistics",
                {
                    "logprob": found.logprob,
                    "entropy": found.entropy,
                    "logsumexp": found.logsumexp,
                    "mean_logit": found.mean_logit,
                },
                item=str(number),
            )


class Writes(Analyzer):
    """What the model writes on, with its state before and after."""

    name = "writes"

    class Params(BaseParams):
        rows: list[list[int]]
        new_tokens: int = 12
        temperature: float = 0.0
        seed: int = 0

    async def analyze(self, params: Params, ctx: Context) -> AsyncIterator[Result]:
        rows = [Row(tuple(tokens)) for tokens in params.rows]
        sampling = Sampling(
            max_new_tokens=params.new_tokens,
            temperature=params.temperature,
            top_k=0 if params.temperature == 0 else 50,
            seed=params.seed,
            stop_tokens=(),
        )
        state = Capture(frozenset({Site.FINAL_RESIDUAL}))
        async with aclosing(ctx.model.generate(rows, sampling, state)) as events:
            async for event in events:
                if isinstance(event, Generated):
                    yield Record("written", {"tokens": list(event.tokens)}, item=str(event.row))
                    for name, found in (("before", event.before), ("after", event.after)):
                        if found is not None:
                            data = found[Site.FINAL_RESIDUAL].float()
                            yield Tensor(name, data, item=str(event.row))


class Greedy(Analyzer):
    """Allocates so many bytes on the device, in its reduce, and answers the row's last residual."""

    name = "greedy"

    class Params(BaseParams):
        tokens: list[int]
        bytes: int = 0

    async def analyze(self, params: Params, ctx: Context) -> AsyncIterator[Result]:
        capture = Capture(frozenset({Site.FINAL_RESIDUAL}), reduce=Reduce(allocating, params.bytes))
        (found,) = await ctx.model.forward([Row(tuple(params.tokens))], capture)
        yield Tensor("residual", found)


def allocating(stack: Stack, view: ModelView) -> Sequence[Any]:
    """Takes what its rows ask for, then answers their residuals."""
    residual = stack.values[Site.FINAL_RESIDUAL]
    held = [torch.empty(wanted, dtype=torch.uint8, device=residual.device) for wanted in stack.args]
    values = [residual[stack.slice_of(row)] for row in range(len(stack))]
    del held
    return values
