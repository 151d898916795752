"""What an analyzer may do to its own standing."""

from collections.abc import AsyncIterator
from typing import Any

from lensd_api import Analyzer, Record
from lensd_server.engine.events import Priority


class Humble(Analyzer):
    """Lets others go first."""

    name = "humble"

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
        before = ctx.ticket.priority
        ctx.lower_priority()
        yield Record("priorities", {"before": str(before), "after": str(ctx.ticket.priority)})


async def test_an_analysis_can_put_itself_behind_interactive_ones(rig: Any) -> None:
    (found,) = await rig.results(Humble())
    assert found.values == {"before": Priority.INTERACTIVE, "after": Priority.BATCH}
