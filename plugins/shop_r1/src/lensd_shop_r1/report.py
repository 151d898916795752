"""From scores to results: rows as they come, then groups and summary."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lensd_api import ItemError, Record, Result, Table, Tensor, Text
from lensd_shop_r1.groups import Groups
from lensd_shop_r1.metrics import Metrics
from lensd_shop_r1.params import ACTION_TYPES, ShopR1Params
from lensd_shop_r1.scoring import Score, floats

#: Rows of the longest part of ``rewards``. The first has one row, each next one twice as many: the
#: first reward is out at once, and a long request does not pay for a message a row.
MOST_ROWS = 16
_COMPONENTS = ("format", "type", "attribute", "value", "rationale", "total")
_COEFFICIENTS = (
    "alpha", "dars", "rouge_threshold", "format_reward", "type_reward", "click_name_reward",
    "type_name_reward", "type_text_reward", "type_name_factor",
)  # fmt: skip


@dataclass(slots=True)
class Report:
    """Collects scores in the order of the items."""

    params: ShopR1Params
    vocab_size: int | None
    metrics: Metrics = field(default_factory=Metrics)
    groups: Groups = field(default_factory=Groups)
    _rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    _room: int = 1
    _done: int = 0
    _failed: int = 0
    _malformed: int = 0
    _hits: int = 0
    _sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_COMPONENTS, 0.0))
    _certainties: list[float] = field(default_factory=list[float])

    def add(self, score: Score) -> Iterator[Result]:
        """What is ready once ``score`` is known."""
        self._done += 1
        self._count(score)
        yield from _of_item(score, self.params)
        self._rows.append(_row(score))
        last = self._done == len(self.params.items)
        if last or len(self._rows) == self._room:
            yield self._part(last=last)

    def finish(self) -> Iterator[Result]:
        """What needs all of them."""
        if columns := self.groups.columns():
            yield Table("groups", columns, title="Rewards within each group of rollouts")
        yield Record("summary", self._summary())

    def _count(self, score: Score) -> None:
        if score.error is not None or score.rollout is None:
            self._failed += 1
            return
        self._malformed += score.predicted is None
        self._hits += score.action.is_hit
        predicted = score.predicted.type if score.predicted else ""
        self.metrics.add(score.rollout.reference.type, predicted, is_exact=score.is_exact)
        self.groups.add(score)
        for name, value in _components(score).items():
            self._sums[name] += value
        if score.certainty is not None:
            self._certainties.append(score.certainty)

    def _part(self, *, last: bool) -> Table:
        rows, self._rows, self._room = self._rows, [], min(MOST_ROWS, 2 * self._room)
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        return Table("rewards", columns, units={"self_certainty": "nat"}, last=last)

    def _summary(self) -> dict[str, Any]:
        scored = self.metrics.count
        baseline = self.metrics.always_terminate()
        certainties = self._certainties
        return {
            "items": self._done,
            "failed": self._failed,
            "malformed": self._malformed,
            "hits": self._hits,
            **self.metrics.overall(),
            **{f"mean_{name}": self._sums[name] / scored if scored else None for name in _COMPONENTS},
            "self_certainty": self.params.self_certainty,
            "mean_self_certainty": sum(certainties) / len(certainties) if certainties else None,
            "vocab_size": self.vocab_size,
            "by_type": {kind: self.metrics.of_type(kind) for kind in ACTION_TYPES},
            "always_terminate": baseline.overall(),
            "groups": self.groups.summary() if self.groups.by_name else None,
            "parse": self.params.parse_mode,
            "coefficients": {name: getattr(self.params, name) for name in _COEFFICIENTS},
        }


def _components(score: Score) -> dict[str, float]:
    action = score.action
    parts = (score.format, action.type, action.attribute, action.value, score.rationale, score.total)
    return dict(zip(_COMPONENTS, parts, strict=True))


def _of_item(score: Score, params: ShopR1Params) -> Iterator[Result]:
    name = str(score.index)
    if score.error is not None:
        yield ItemError("item", score.error, item=name)
    if score.spans:
        title = f"Certainty of each token of the rationale, {params.self_certainty}, nats"
        yield Text("token_certainty", score.text, score.spans, title=title, item=name)
    if score.logprobs is not None:
        yield Tensor("logprobs", floats(score.logprobs), ("token",), unit="nat", item=name)


def _row(score: Score) -> dict[str, Any]:
    failed = score.error is not None
    reference = "" if score.rollout is None else score.rollout.reference.type
    return {
        "item": score.index,
        "group": "" if score.rollout is None else score.rollout.group_id,
        "reference": reference,
        "predicted": "" if score.predicted is None else score.predicted.type,
        **{name: None if failed else value for name, value in _components(score).items()},
        "self_certainty": score.certainty,
        "tokens": score.tokens,
        "rouge_name": score.action.rouge_name,
        "rouge_text": score.action.rouge_text,
        "exact": score.is_exact,
        "parse_error": score.problem,
        "error": score.error.reason if score.error is not None else "",
    }
