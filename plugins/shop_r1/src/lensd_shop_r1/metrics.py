"""How well the predicted actions agree with the true ones, and what saying ``terminate`` always would give.

Strict readings: *exact* is type and all fields, *type accuracy* type alone, *F1* the mean over the
three types, a type that never occurs counting 0. A malformed output is a wrong one.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from lensd_shop_r1.params import ACTION_TYPES, ActionType


@dataclass(slots=True)
class Metrics:
    """Counts of outputs by true and predicted type. Not kept: the outputs."""

    pairs: Counter[tuple[ActionType, str]] = field(default_factory=Counter[tuple[ActionType, str]])
    exact: Counter[ActionType] = field(default_factory=Counter[ActionType])

    def add(self, true: ActionType, predicted: str, *, is_exact: bool) -> None:
        """Counts one output; ``predicted`` is empty for a malformed one."""
        self.pairs[true, predicted] += 1
        self.exact[true] += is_exact

    @property
    def count(self) -> int:
        """Outputs counted."""
        return self.pairs.total()

    def overall(self) -> dict[str, float | None]:
        """Shares of all outputs; ``None`` when there are none."""
        by_type = [self.of_type(kind) for kind in ACTION_TYPES]
        right = sum(self.pairs[kind, kind] for kind in ACTION_TYPES)
        return {
            "exact": _share(self.exact.total(), self.count),
            "type_accuracy": _share(right, self.count),
            "f1": sum(each["f1"] for each in by_type) / len(by_type) if self.count else None,
        }

    def of_type(self, kind: ActionType) -> dict[str, Any]:
        """Of one true type: ``exact`` and ``type_accuracy`` are shares of its own outputs."""
        true = sum(n for (t, _), n in self.pairs.items() if t == kind)
        said = sum(n for (_, p), n in self.pairs.items() if p == kind)
        right = self.pairs[kind, kind]
        return {
            "count": true,
            "predicted": said,
            "exact": _share(self.exact[kind], true),
            "type_accuracy": _share(right, true),
            "f1": 2 * right / (true + said) if true + said else 0.0,
        }

    def always_terminate(self) -> "Metrics":
        """The same references, each answered with ``terminate``: what a model must beat."""
        baseline = Metrics()
        for (true, _), count in self.pairs.items():
            baseline.pairs[true, "terminate"] += count
            baseline.exact[true] += count if true == "terminate" else 0
        return baseline


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
