"""Routed experts: modules that hold several experts' weights and sum what a token's experts write.

Called with one slot of the routing at a time, such a module gives each expert's share.
"""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lensd_server.engine.anatomy.probe import BlockTrace, holds_experts


@dataclass(frozen=True, slots=True)
class RoutedExperts:
    """A fused experts module and the order in which it takes its three tensors."""

    module: nn.Module
    names: tuple[str, ...]
    hidden: str
    ids: str
    weights: str
    n_slots: int
    n_experts: int

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states [n, d_model], expert ids and weights [n, slot] of a call."""
        given = inspect.signature(self.module.forward).bind(*args, **kwargs).arguments
        return given[self.hidden], given[self.ids], given[self.weights]

    def slot_writes(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """[n, slot, d_model]: the weighted output of the expert in each slot.

        ``forward`` is called past any hooks, with one slot a row, and by position: which names
        it has depends on the implementation transformers dispatches to.
        """
        repeated = hidden.repeat_interleave(self.n_slots, dim=0)
        call = {self.hidden: repeated, self.ids: ids.reshape(-1, 1), self.weights: weights.reshape(-1, 1)}
        return self.module.forward(*(call[name] for name in self.names)).reshape(*ids.shape, -1)


def find_experts(modules: Iterable[nn.Module], trace: BlockTrace, d_model: int) -> RoutedExperts | None:
    """The experts module among the called ``modules``, recognised by what it was given."""
    for module in modules:
        call = trace.calls[module]
        if not holds_experts(module) or len(call.given) != 3 or call.output.shape[-1] != d_model:
            continue
        ids = [name for name, value in call.given.items() if not value.is_floating_point()]
        if len(ids) != 1:
            continue
        slots = call.given[ids[0]].shape
        weights = [n for n, v in call.given.items() if v.is_floating_point() and v.shape == slots]
        hidden = [n for n in call.given if n not in (*ids, *weights)]
        if len(weights) == 1 and len(hidden) == 1:
            first = next(p for p in module.parameters(recurse=False) if p.ndim == 3)
            return RoutedExperts(
                module=module,
                names=tuple(call.given),
                hidden=hidden[0],
                ids=ids[0],
                weights=weights[0],
                n_slots=int(slots[-1]),
                n_experts=int(first.shape[0]),
            )
    return None
