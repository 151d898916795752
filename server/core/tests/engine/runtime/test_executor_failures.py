"""An analysis that fails says whose fault it was, and harms nobody else."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import torch

from lensd_api import (
    DeviceOutOfMemory,
    Edge,
    Graph,
    InvalidParams,
    InvalidResult,
    Node,
    PluginFailure,
    Record,
    RequirementNotMet,
    Requirements,
    Table,
    Unit,
)
from lensd_server.engine.events import (
    Accepted,
    Found,
)
from lensd_server.engine.observers import Observers
from server.core.tests.engine.runtime.counting import (
    Count,
    Modelless,
    Noting,
    PlainModelless,
)


class NeedsExperts(Count):
    """Needs experts in every layer."""

    name = "needs-experts"

    def requirements(self, params: Any = None) -> Requirements:
        return Requirements(units=frozenset({Unit.EXPERT}))


@pytest.mark.parametrize("loaded", [False, True])
async def test_a_model_that_lacks_a_unit_is_refused_with_the_reason(rig: Any, loaded: bool) -> None:
    if loaded:
        await rig.events(Count())
    with pytest.raises(RequirementNotMet, match="'expert'"):
        await rig.events(NeedsExperts())
    assert rig.residency.leases("llama") == 0


async def test_an_exception_becomes_a_plugin_failure_without_its_text(rig: Any) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        yield Record("r", {})
        raise KeyError("a secret path")

    with pytest.raises(PluginFailure) as failed:
        await rig.events(Modelless(body))
    assert "secret" not in failed.value.message
    assert failed.value.metadata["analyzer"] == "modelless"


async def test_what_was_found_before_a_failure_is_delivered_first(rig: Any) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        yield Record("r", {})
        raise KeyError

    stream = rig.start(Modelless(body))
    seen = []
    with pytest.raises(PluginFailure):
        async for event in stream:
            seen.append(type(event))
    assert seen == [Accepted, Found]


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), RecursionError(), asyncio.CancelledError()]
)
async def test_nothing_an_analyzer_raises_ends_the_server(rig: Any, error: BaseException) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        yield Record("r", {})
        raise error

    with pytest.raises(PluginFailure):
        await rig.events(Modelless(body))
    assert await rig.results(Count())


async def test_a_plain_generator_that_exits_is_a_plugin_failure(rig: Any) -> None:
    def body(ctx: Any) -> Iterator[Any]:
        yield Record("r", {})
        raise SystemExit(3)

    with pytest.raises(PluginFailure):
        await rig.events(PlainModelless(body))  # pyright: ignore[reportArgumentType]


async def test_what_is_not_a_result_is_a_plugin_failure(rig: Any) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        yield {"not": "a result"}

    with pytest.raises(PluginFailure):
        await rig.events(Modelless(body))


async def test_out_of_memory_in_an_analyzer_is_said_so(rig: Any) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        yield Record("r", {})
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceOutOfMemory):
        await rig.events(Modelless(body))


async def test_an_error_raised_on_purpose_passes_as_it_is(rig: Any) -> None:
    with pytest.raises(InvalidParams, match="prompt"):
        await rig.events(Count(), prompt="word " * 200)


@pytest.mark.parametrize(
    "result",
    [
        Table("t", {"ragged": [1], "columns": []}),
        Table("t", {"mixed": [1, "x"]}),
        Table("t", {"huge": [2**64]}),
        Table("t", {"open": [1]}, last=False),
        Graph("g", [Node("n")], [Edge("n", "nowhere")]),
        Record("r", {"surrogate": "\ud800"}),
        Table("t", {"long": [*range(10_000), "x"]}),
    ],
    ids=lambda result: next(iter(getattr(result, "columns", ["graph or record"]))),
)
@pytest.mark.parametrize("kind", [Modelless, PlainModelless])
async def test_a_result_nobody_could_read_is_a_plugin_error_for_caller_and_metrics_alike(
    make_rig: Any, kind: Any, result: Any
) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        yield result

    noting = Noting()
    rig = make_rig(observers=Observers(analyses=[noting]))
    with pytest.raises(InvalidResult, match=f"result '{result.name}'") as ended:
        await rig.events(kind(body if kind is Modelless else lambda ctx: [result]))
    assert (ended.value.status, ended.value.reason) == ("INTERNAL", "INVALID_RESULT")
    await rig.settled()
    assert noting.told[-1][1].outcome == "plugin_error"


async def test_what_is_said_beside_results_must_be_text(rig: Any) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        ctx.warn("ODD", 3)
        yield Record("r", {})

    with pytest.raises(PluginFailure):
        await rig.events(Modelless(body))
