"""What a model has read of some texts, kept as keys and values, so that it can read on.

Lanes of one forward may each have a past of their own length. Pasts are padded on the left and new
tokens on the right, so that a text stays contiguous and whatever counts slots (sliding windows, ALiBi)
counts right. Sliding layers keep all they have read: their window is in the mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


@dataclass(slots=True, eq=False, weakref_slot=True)
class Slab:
    """Keys and values of the lanes of a forward: per layer [lane, kv_head, slot, head_dim].

    Slots from ``filled`` on hold nothing yet. ``None`` for a layer that keeps none of its own.
    """

    lanes: int
    capacity: int
    filled: int = 0
    keys: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    values: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return sum(tensor.nbytes for kind in (self.keys, self.values) for tensor in kind.values())


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """What has been read of one text: slots ``start`` to ``stop`` of a lane. Never changes."""

    slab: Slab
    lane: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def nbytes(self) -> int:
        """Its share of the slab."""
        return self.slab.nbytes * len(self) // (self.slab.lanes * self.slab.capacity)

    def alone(self) -> "Past":
        """The same in a slab of its own."""
        slab = Slab(1, len(self), len(self))
        slab.keys = {layer: self._cut(tensor).clone() for layer, tensor in self.slab.keys.items()}
        slab.values = {layer: self._cut(tensor).clone() for layer, tensor in self.slab.values.items()}
        return Past(slab, 0, 0, len(self))

    def _cut(self, tensor: Tensor) -> Tensor:
        return tensor[self.lane : self.lane + 1, :, self.start : self.stop]


class LaneCache:
    """Keys and values of one forward, whose lanes read on from ``pasts`` by up to ``width`` new tokens.

    With ``spare`` slots it leaves room for as many more in the same place; where the lanes are just those
    of one slab with room left, nothing is copied.

    Nothing it refers to refers to it, so that its memory is free with the last reference: until Python
    looks for cycles there may be many forwards.
    """

    def __init__(self, pasts: Sequence[Past | None], width: int, *, n_layers: int, spare: int = 0) -> None:
        self.pasts, self.width = tuple(pasts), width
        self._n_layers = n_layers
        grown = _room_for(self.pasts, width)
        #: Slots before the new tokens.
        self.offset = grown.filled if grown is not None else max(map(_length, self.pasts))
        self.slab = grown or Slab(len(self.pasts), self.offset + width + spare)

    def for_model(self) -> Cache:
        """What transformers takes as ``past_key_values``, for one forward."""
        return Cache(layers=[_LaneLayer(self, index) for index in range(self._n_layers)])

    def begins(self, lane: int) -> int:
        """The slot of the first token of ``lane``."""
        past = self.pasts[lane]
        return self.offset - _length(past)

    def kept(self, lengths: Sequence[int]) -> list[Past]:
        """What each lane has read after the forward, in which it had ``lengths`` new tokens."""
        self.slab.filled = self.offset + self.width
        return [
            Past(self.slab, lane, self.begins(lane), self.offset + length)
            for lane, length in enumerate(lengths)
        ]

    def extend(self, index: int, kind: str, new: Tensor) -> Tensor:
        """Writes what a layer has made of the new tokens; answers that of the past and of them."""
        stored: dict[int, Tensor] = getattr(self.slab, kind)
        end = self.offset + self.width
        if index not in stored:
            stored[index] = self._laid_out(index, kind, new)
        stored[index][:, :, self.offset : end] = new
        return stored[index][:, :, :end]

    def _laid_out(self, index: int, kind: str, new: Tensor) -> Tensor:
        lanes, heads, _, size = new.shape
        target = new.new_empty(lanes, heads, self.slab.capacity, size)
        if any(_length(past) < self.offset for past in self.pasts):
            # Masked, but a weight of zero times what happened to be in memory could be NaN.
            target[:, :, : self.offset] = 0
        first = self.pasts[0]
        if first is not None and all(past is first for past in self.pasts):
            source: Tensor = getattr(first.slab, kind)[index]
            target[:, :, : self.offset] = source[first.lane, :, first.start : first.stop]
            return target
        for lane, past in enumerate(self.pasts):
            if past is not None:
                source = getattr(past.slab, kind)[index]
                target[lane, :, self.begins(lane) : self.offset] = source[
                    past.lane, :, past.start : past.stop
                ]
        return target


class _LaneLayer(DynamicLayer):
    """One layer of a :class:`LaneCache`, as transformers sees it."""

    def __init__(self, cache: LaneCache, index: int) -> None:
        super().__init__()
        self._cache, self._index = cache, index
        self._updated = False

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of past and new tokens."""
        self._updated = True
        cache = self._cache
        return (
            cache.extend(self._index, "keys", key_states),
            cache.extend(self._index, "values", value_states),
        )

    def get_seq_length(self) -> int:
        """Slots in use."""
        return self._cache.offset + (self._cache.width if self._updated else 0)


def _length(past: Past | None) -> int:
    return 0 if past is None else len(past)


def _room_for(pasts: Sequence[Past | None], width: int) -> Slab | None:
    """The slab that holds just ``pasts``, in order and to its end, if it has room for ``width`` more."""
    first = pasts[0]
    if first is None or first.slab.lanes != len(pasts):
        return None
    slab = first.slab
    fits = slab.filled + width <= slab.capacity and all(
        past is not None and past.slab is slab and past.lane == lane and past.stop == slab.filled
        for lane, past in enumerate(pasts)
    )
    return slab if fits else None


def total_bytes(pasts: Sequence[Past]) -> int:
    """Memory that the slabs of ``pasts`` take, each counted once."""
    return sum(slab.nbytes for slab in {id(past.slab): past.slab for past in pasts}.values())


def settle(pasts: Sequence[Past]) -> list[Past]:
    """``pasts`` as they are worth keeping: out of slabs of which they use less than half."""
    used: dict[int, int] = {}
    for past in {id(past): past for past in pasts}.values():
        used[id(past.slab)] = used.get(id(past.slab), 0) + len(past)
    moved: dict[int, Past] = {}
    for past in pasts:
        slab = past.slab
        wasteful = 2 * used[id(slab)] < slab.lanes * slab.filled
        moved.setdefault(id(past), past.alone() if wasteful else past)
    return [moved[id(past)] for past in pasts]
