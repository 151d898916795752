"""Rewards of the rollouts of one prompt, as a trainer that compares them within the group will see them.

GRPO divides by the group's standard deviation. One rollout that earns the large factor makes it about
350 in a group of eight, and every other difference of the group vanishes beside it.
"""

from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from lensd_shop_r1.scoring import Score


@dataclass(slots=True)
class Group:
    """Totals of one group, and the same without the scaled part."""

    totals: list[float] = field(default_factory=list[float])
    others: list[float] = field(default_factory=list[float])
    hits: int = 0

    def row(self) -> dict[str, Any]:
        """Mean, standard deviation (n - 1, as TRL takes it) with and without the scaled part."""
        return {
            "rollouts": len(self.totals),
            "mean": fmean(self.totals),
            "std": _std(self.totals),
            "std_without_value": _std(self.others),
            "hits": self.hits,
        }


@dataclass(slots=True)
class Groups:
    """Groups by name, in order of their first rollout. Rollouts without a group are left out."""

    by_name: dict[str, Group] = field(default_factory=dict[str, Group])

    def add(self, score: Score) -> None:
        """Counts one scored rollout."""
        if score.rollout is None or not score.rollout.group_id:
            return
        group = self.by_name.setdefault(score.rollout.group_id, Group())
        group.totals.append(score.total)
        group.others.append(score.total - score.action.value)
        group.hits += score.action.is_hit

    def columns(self) -> dict[str, list[Any]]:
        """One row a group."""
        rows = [{"group": name, **group.row()} for name, group in self.by_name.items()]
        return {key: [row[key] for row in rows] for key in rows[0]} if rows else {}

    def summary(self) -> dict[str, Any]:
        """``with_hit``: groups in which some, not all, earn the large factor, so that it alone decides.
        ``without_spread``: groups whose rewards are all equal, from which nothing is learnt."""
        groups = list(self.by_name.values())
        return {
            "count": len(groups),
            "mean_std": fmean(_std(group.totals) for group in groups),
            "with_hit": sum(0 < group.hits < len(group.totals) for group in groups),
            "without_spread": sum(_std(group.totals) == 0 for group in groups),
        }


def _std(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0
