"""The analyzer: from parameters to streamed results."""

from collections.abc import AsyncIterator, Sequence

from lensd_api import (
    Analyzer,
    Context,
    Cost,
    Example,
    Exhausted,
    FailedPrecondition,
    InvalidRequest,
    ItemError,
    ModelCard,
    Requirements,
    Result,
    ResultSpec,
    Unit,
)
from lensd_dla.items import Item, RefusedItem, read_items
from lensd_dla.params import DlaParams
from lensd_dla.plan import (
    CAPTURE_BUDGET_BYTES,
    Part,
    degradations,
    group_positions,
    plan_parts,
    position_bytes,
)
from lensd_dla.readout import ReadOut, resolve_readout
from lensd_dla.report import ItemReport
from lensd_dla.run import Group, in_order

_MARY = "When Mary and John went to the store, John gave a drink to"
#: What one item of several may fail of, without an end to the others.
_OF_ONE_ITEM = (InvalidRequest, FailedPrecondition, Exhausted)


class Dla(Analyzer):
    """Direct logit attribution: what each component writes toward a logit, adding up to it."""

    name = "dla"
    Params = DlaParams
    results = (
        ResultSpec("contributions", "table", "one row per component and position; they add up to the logit"),
        ResultSpec("logits", "table", "per position: target, logit, sum of the rows, completeness, rounding"),
        ResultSpec("heads", "tensor", "position x layer x head, at unit head and source"),
        ResultSpec("sources", "tensor", "position x layer x head x source token, at unit source"),
        ResultSpec("sources_text", "text", "the last position's sources, summed over heads, on the text"),
        ResultSpec("lens", "table", "logit lens: the top tokens after each layer, where asked"),
        ResultSpec("summary", "record", "tokens, target, logit and checks at the last position asked"),
    )
    examples = (
        Example(
            "mary-or-john",
            "which components prefer the name that was not repeated",
            {"prompt": _MARY, "target": " Mary", "contrast": " John"},
        ),
        Example(
            "capital-by-head",
            "which heads fetch the capital",
            {"prompt": "The capital of France is", "unit": "head"},
        ),
        Example(
            "several-prompts",
            "one analysis for several texts, each an item of its own",
            {"prompts": ["The capital of France is", "The capital of Italy is"], "unit": "component"},
        ),
        Example(
            "strongest-neurons",
            "the neurons that write most toward the prediction",
            {"prompt": "The capital of France is", "unit": "neuron", "top_k": 10},
        ),
        Example(
            "strongest-sources",
            "which tokens the heads bring the answer from",
            {"prompt": _MARY, "target": " Mary", "unit": "source", "top_k": 10},
        ),
        Example(
            "layer-by-layer",
            "what the model would say after each layer",
            {"prompt": "The capital of France is", "unit": "block", "lens": True, "lens_top_k": 3},
        ),
        Example(
            "with-direct-effect",
            "how far contributions are from what removing each component does",
            {"prompt": "The capital of France is", "positions": [-2, -1], "direct_effect": True},
        ),
    )

    def requirements(self, params: DlaParams | None = None) -> Requirements:
        """Blocks only: a layer that cannot be split as asked gives coarser rows and says so."""
        return Requirements(units=frozenset({Unit.BLOCK}))

    def estimate(self, params: DlaParams, card: ModelCard) -> Cost:
        """Tokens of every forward pass, and the captures on the device at a time."""
        items = [item for item in read_items(params, card) if isinstance(item, Item)]
        if not items:
            return Cost()
        parts = plan_parts(params, card.anatomy, max(len(item.tokens) for item in items))
        groups = _groups(items, parts, card)
        tokens = len(parts) * sum(len(group.item.tokens) for group in groups)
        sizes = [group.size_bytes for group in groups]
        return Cost(tokens=tokens, bytes=max(*sizes, min(sum(sizes), CAPTURE_BUDGET_BYTES)))

    async def analyze(self, params: DlaParams, ctx: Context) -> AsyncIterator[Result]:
        """Yields each item's rows as they come, then its other results."""
        model = ctx.model
        read_out = resolve_readout(params, model, ctx.tensors)
        items: list[Item] = []
        for item in read_items(params, model):
            if isinstance(item, RefusedItem):
                yield ItemError("contributions", item.error, item=item.name)
            else:
                items.append(item)
        for message in degradations(model.anatomy, params.unit):
            ctx.warn("COARSER_UNIT", message)
        if not items:
            return
        parts = plan_parts(params, model.anatomy, max(len(item.tokens) for item in items))
        groups = _groups(items, parts, model)
        async for result in self._results(groups, parts, read_out, params, ctx):
            yield result

    async def _results(
        self,
        groups: Sequence[Group],
        parts: Sequence[Part],
        read_out: ReadOut,
        params: DlaParams,
        ctx: Context,
    ) -> AsyncIterator[Result]:
        report: ItemReport | None = None
        failed: Item | None = None
        total, done = sum(len(group.positions) for group in groups), 0
        finished = in_order(groups, parts, read_out, params, ctx.model)
        try:
            async for group, task in finished:
                item, done = group.item, done + len(group.positions)
                if item is failed:
                    if not task.cancelled():
                        task.exception()  # looked at, or asyncio reports it as forgotten
                    continue
                if report is None or report.item is not item:
                    report = ItemReport(item, read_out, params, ctx.model)
                last = group.positions[-1] == item.positions[-1]
                try:
                    yield report.add(group.positions, task.result(), last=last)
                except _OF_ONE_ITEM as error:
                    if params.prompts is None:
                        raise
                    failed = item
                    yield ItemError("contributions", error, item=item.name)
                    continue
                if len(groups) > 1:  # of a single one the rest follows at once
                    ctx.progress(done, total, stage="attributing", unit="positions")
                if last:
                    for result in report.finish():
                        yield result
        finally:
            await finished.aclose()


def _groups(items: Sequence[Item], parts: Sequence[Part], card: ModelCard) -> list[Group]:
    groups: list[Group] = []
    sizes = {
        length: max(position_bytes(part, card.anatomy, card.dtype, length) for part in parts)
        for length in {len(item.tokens) for item in items}
    }
    for item in items:
        each = sizes[len(item.tokens)]
        groups += [
            Group(item, positions, each * len(positions))
            for positions in group_positions(item.positions, each)
        ]
    return groups
