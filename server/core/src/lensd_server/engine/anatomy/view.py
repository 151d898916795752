"""The weights an analyzer may read in a reduce, on the model's device."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from lensd_api import Anatomy, RequirementNotMet, Unit
from lensd_server.engine.anatomy.layers import Layer
from lensd_server.engine.anatomy.norms import VerifiedNorm
from lensd_server.engine.anatomy.readout import ReadOut
from lensd_server.engine.anatomy.skeleton import Skeleton
from lensd_server.engine.anatomy.sublayers import SubLayer
from lensd_server.engine.upload import upload

#: What is kept of tensors derived from weights, at most: so much of the weights' own size.
_KEPT_SHARE = 1 / 20


@dataclass(slots=True)
class WeightView:
    """A :class:`lensd_api.ModelView` of an inspected model. Used by its device thread only."""

    anatomy: Anatomy
    skeleton: Skeleton
    layers: tuple[Layer, ...]
    read_out: ReadOut
    #: The most recently used last.
    _cache: OrderedDict[str, Tensor] = field(default_factory=OrderedDict[str, Tensor])
    #: Memory that :meth:`cached` tensors take. May be read on any thread.
    cached_bytes: int = 0

    @property
    def final_norm(self) -> VerifiedNorm | None:
        """The norm before the output head."""
        return self.read_out.norm

    @property
    def unembed(self) -> Tensor:
        """[vocab, d_model]."""
        return cast("Tensor", self.skeleton.head.weight).detach()

    @property
    def unembed_bias(self) -> Tensor | None:
        """[vocab]."""
        bias = getattr(self.skeleton.head, "bias", None)
        return bias.detach() if isinstance(bias, Tensor) else None

    def attention_write(self, layer: int) -> SubLayer:
        """How the attention of ``layer`` writes. Raises RequirementNotMet without HEAD."""
        part = self._offering(layer, Unit.HEAD).attention
        assert part is not None
        return part

    def mlp_write(self, layer: int) -> SubLayer:
        """How the dense MLP of ``layer`` writes. Raises RequirementNotMet without NEURON."""
        part = self._offering(layer, Unit.NEURON).mlp
        assert part is not None
        return part

    def logits(self, residual: Tensor) -> Tensor:
        """[n, d_model] before the final norm -> [n, vocab], through the model's own modules.

        Raises RequirementNotMet when what lies between could not be verified.
        """
        if self.read_out.problem:
            raise RequirementNotMet(
                f"logits cannot be read from the residual stream: {self.read_out.problem}"
            )
        with torch.inference_mode():
            x = residual.to(self.skeleton.dtype)
            if self.read_out.norm_module is not None:
                x = self.read_out.norm_module(x)
            return self.read_out.transform(self.skeleton.head(x))

    def upload(
        self, values: Sequence[int] | Sequence[float] | Tensor, dtype: torch.dtype | None = None
    ) -> Tensor:
        """See :meth:`lensd_api.ModelView.upload`."""
        return upload(values, self.skeleton.device, dtype)

    def cached(self, key: str, build: Callable[[], Tensor]) -> Tensor:
        """See :meth:`lensd_api.ModelView.cached`."""
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        built = build()
        # A view keeps all of its storage alive.
        size = built.untyped_storage().nbytes()
        most = self._most_cached_bytes()
        if size > most:
            return built
        self._cache[key] = built
        self.cached_bytes += size
        while self.cached_bytes > most:
            _, dropped = self._cache.popitem(last=False)
            self.cached_bytes -= dropped.untyped_storage().nbytes()
        return built

    def _most_cached_bytes(self) -> int:
        return int(_KEPT_SHARE * sum(weight.nbytes for weight in self.skeleton.module.parameters()))

    def _offering(self, layer: int, unit: Unit) -> Layer:
        if not 0 <= layer < len(self.layers):
            raise RequirementNotMet(f"there is no layer {layer}: the model has {len(self.layers)}")
        found = self.layers[layer]
        if unit not in found.anatomy.units:
            reason = found.anatomy.refused.get(unit, "not offered")
            raise RequirementNotMet(f"layer {layer} has no unit '{unit}': {reason}")
        return found
