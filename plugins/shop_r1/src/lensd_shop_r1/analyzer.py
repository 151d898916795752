"""The analyzer: from rollouts to streamed rewards."""

from collections.abc import AsyncIterator, Iterator

from lensd_api import (
    Analyzer,
    Context,
    Cost,
    ModelCard,
    ModelHandle,
    Requirements,
    Result,
    ResultSpec,
)
from lensd_shop_r1.certainty import BLOCK_BYTES
from lensd_shop_r1.examples import EXAMPLES
from lensd_shop_r1.params import Rollout, ShopR1Params
from lensd_shop_r1.report import Report
from lensd_shop_r1.scoring import Prepared, Score, finish, prepare
from lensd_shop_r1.waves import MAX_TOKENS, in_order

#: Log-probabilities, and two blocks the size of the logits, while a batch is reduced.
_BLOCKS = 3


class ShopR1(Analyzer):
    """Rewards of simulated shopping actions: format, action and the rationale's self-certainty."""

    name = "shop-r1"
    Params = ShopR1Params
    results = (
        ResultSpec("rewards", "table", "one row per item, streamed: every component and the total"),
        ResultSpec("token_certainty", "text", "per item: the raw rationale, each token scored, where asked"),
        ResultSpec(
            "logprobs", "tensor", "per item: log-probability of each token of the output, where asked"
        ),
        ResultSpec("groups", "table", "mean and spread of the rewards of each group of rollouts"),
        ResultSpec("summary", "record", "metrics, the constant-terminate baseline, means, coefficients"),
    )
    examples = EXAMPLES

    def requirements(self, params: ShopR1Params | None = None) -> Requirements:
        """A model only where something is read from it."""
        return Requirements(model=params is not None and params.needs_model)

    def estimate(self, params: ShopR1Params, card: ModelCard) -> Cost:
        """At most one token a byte, no row longer than the context; captures of one wave."""
        if not params.needs_model:
            return Cost()
        longest, anatomy = card.anatomy.context_length, card.anatomy
        tokens = sum(min(longest, _bytes(i)) for i in params.items if isinstance(i, Rollout))
        captures = 4 * anatomy.d_model * min(tokens, MAX_TOKENS)
        return Cost(tokens=tokens, bytes=captures + _BLOCKS * BLOCK_BYTES)

    async def analyze(self, params: ShopR1Params, ctx: Context) -> AsyncIterator[Result]:
        """Yields each item's row as it comes, groups and summary last."""
        model = ctx.model if params.needs_model else None
        report = Report(params, None if model is None else model.anatomy.vocab_size)
        total = len(params.items)

        async def work(prepared: Prepared) -> Score:
            return await finish(prepared, params, model)

        scores = in_order(_prepared(params, model), lambda prepared: prepared.size, work)
        try:
            async for score in scores:
                for result in report.add(score):
                    yield result
                ctx.progress(score.index + 1, total, stage="scoring", unit="items")
        finally:
            await scores.aclose()
        for result in report.finish():
            yield result


def _prepared(params: ShopR1Params, model: ModelHandle | None) -> Iterator[Prepared]:
    for index, item in enumerate(params.items):
        yield prepare(index, item, params, model)


def _bytes(item: Rollout) -> int:
    texts = [item.output, item.context or "", *(m.role + m.content for m in item.messages or ())]
    # A chat template adds a few tokens a turn, a tokenizer one or two of its own.
    return sum(len(text.encode(errors="replace")) + 16 for text in texts)
