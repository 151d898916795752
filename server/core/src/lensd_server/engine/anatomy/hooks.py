"""Where each site is read in a model, and the hooks that read it for the length of one forward."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum, auto
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lensd_api import Site
from lensd_server.engine.anatomy.attention import AttentionCall
from lensd_server.engine.anatomy.experts import RoutedExperts
from lensd_server.engine.anatomy.gather import Gather, padded_sources
from lensd_server.engine.anatomy.past import LaneCache
from lensd_server.engine.anatomy.sites import UNLAYERED
from lensd_server.engine.anatomy.skeleton import first_tensor, rows_of
from lensd_server.engine.anatomy.structure import Structure
from lensd_server.engine.upload import upload


def count_hooks(module: nn.Module) -> int:
    """Hooks on ``module`` and everything in it. From any thread."""
    return sum(
        len(part._forward_hooks) + len(part._forward_pre_hooks) + len(part._backward_hooks)
        for part in module.modules()
    )


class Moment(Enum):
    """When and what of a module's call is read."""

    ENTERING = auto()  # its input, before it runs
    LEAVING = auto()  # its output
    GIVEN = auto()  # its input, after it ran: for projections, which do not change it


class Point(NamedTuple):
    """A place to read: the output of a module, or its first input."""

    module: nn.Module
    moment: Moment


class _Store(NamedTuple):
    kept: list[Tensor]
    slot: int
    gather: Gather


class HookSet:
    """Hooks that fill ``gathers`` during one forward; a context manager that removes them again."""

    def __init__(
        self, structure: Structure, gathers: Sequence[Gather], width: int, cache: LaneCache | None = None
    ) -> None:
        self._structure = structure
        self._cache = cache
        self._gathers = gathers
        self._width = width
        self._handles: list[RemovableHandle] = []
        self._attention = [g for g in gathers if g.wants_attention]
        self._row_positions = {id(g): g.row_positions() for g in self._attention}
        # The head runs at every asked (row, position) once, and at one position if none is asked.
        asked = dict.fromkeys(flat for g in gathers if g.wants_logits for flat in g.flat) or {0: None}
        slot = {flat: number for number, flat in enumerate(asked)}
        device = structure.skeleton.device
        self._head_index = upload(list(asked), device, torch.long)
        self._head_slots = {id(g): _slots(g, slot, device) for g in gathers if g.wants_logits}

    @property
    def records_attention(self) -> bool:
        """Whether :meth:`record` has to see the attention calls."""
        return bool(self._attention)

    def __enter__(self) -> "HookSet":
        try:
            self._install()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def keep_logits(self, logits: Tensor) -> None:
        """Takes what the model returned at the positions its head saw: [1, n, vocab]."""
        self._keep_at_head(Site.LOGITS, logits)

    def record(self, module: nn.Module, call: AttentionCall) -> None:
        """Keeps attention weights and values of one attention call."""
        layer = self._structure.attention_layers.get(module)
        for gather in self._attention:
            if layer not in gather.group.layers:
                continue
            slot = gather.group.layers.index(layer)
            rows = gather.group.rows
            sources = [self._sources(row, length) for row, length in zip(rows, gather.lengths, strict=True)]
            if Site.VALUES in gather.kept:
                values = [call.values(row, own) for row, own in zip(rows, sources, strict=True)]
                gather.kept[Site.VALUES][slot] = torch.cat(values)
            if Site.ATTENTION in gather.kept:
                positions = self._row_positions[id(gather)]
                weights = [
                    call.weights(row, asked)[..., own].to(call.value.dtype)
                    for row, own, asked in zip(rows, sources, positions, strict=True)
                ]
                longest = max(own.stop - own.start for own in sources)
                gather.kept[Site.ATTENTION][slot] = padded_sources(weights, longest)

    def _sources(self, row: int, length: int) -> slice:
        """Where a row's own tokens are among the sources of its lane."""
        if self._cache is None:
            return slice(0, length)
        return slice(self._cache.begins(row), self._cache.offset + length)

    def _install(self) -> None:
        stores: dict[nn.Module, dict[Moment, list[_Store]]] = {}
        for gather in self._gathers:
            for site in gather.group.sites:
                layers = (0,) if site in UNLAYERED else gather.group.layers
                for slot, layer in enumerate(layers):
                    point = point_of(self._structure, site, layer)
                    if point is not None:
                        wanted = stores.setdefault(point.module, {}).setdefault(point.moment, [])
                        wanted.append(_Store(gather.kept[site], slot, gather))
            if gather.wants_experts:
                self._watch_experts(gather)
        for module, moments in stores.items():
            self._handles += _register(module, moments, self._width)
        head = self._structure.skeleton.head
        self._handles.append(head.register_forward_pre_hook(self._narrow_head))
        if any(Site.RAW_LOGITS in gather.group.sites for gather in self._gathers):
            self._handles.append(head.register_forward_hook(self._keep_raw))

    def _watch_experts(self, gather: Gather) -> None:
        for slot, layer in enumerate(gather.group.layers):
            experts = self._structure.layers[layer].experts
            if experts is not None:
                hook = _expert_hook(experts, gather, slot)
                self._handles.append(experts.module.register_forward_pre_hook(hook, with_kwargs=True))

    def _narrow_head(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (rows_of(args[0]).index_select(0, self._head_index)[None], *args[1:])

    def _keep_raw(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        # A model may scale or cap this very tensor in place afterwards.
        self._keep_at_head(Site.RAW_LOGITS, output.clone())

    def _keep_at_head(self, site: Site, output: Tensor) -> None:
        takers = [gather for gather in self._gathers if site in gather.group.sites]
        for gather in takers:
            slots = self._head_slots[id(gather)]
            if slots is not None:
                gather.kept[site][0] = output[0].index_select(0, slots)
            else:
                # Large: not copied for one that takes all of it alone. Two would write into each other's.
                gather.kept[site][0] = output[0] if len(takers) == 1 else output[0].clone()


def _slots(gather: Gather, slot: Mapping[int, int], device: torch.device) -> Tensor | None:
    """Where the head's output has the positions of ``gather``; ``None`` if they are all of it, in order."""
    slots = [slot[flat] for flat in gather.flat]
    return None if slots == list(range(len(slot))) else upload(slots, device, torch.long)


def point_of(structure: Structure, site: Site, layer: int) -> Point | None:
    """Where ``site`` of ``layer`` is read; ``None`` for what needs more than a gather."""
    part = structure.layers[layer]
    match site:
        case Site.EMBED if structure.embeddings.position is None:
            return Point(structure.skeleton.blocks[0], Moment.ENTERING)
        case Site.EMBED:
            return Point(structure.embeddings.token, Moment.LEAVING)
        case Site.POS_EMBED if structure.embeddings.position is not None:
            return Point(structure.embeddings.position, Moment.LEAVING)
        case Site.FINAL_RESIDUAL if structure.read_out.norm_module is not None:
            return Point(structure.read_out.norm_module, Moment.ENTERING)
        case Site.FINAL_RESIDUAL:
            return Point(structure.skeleton.blocks[-1], Moment.LEAVING)
        case Site.BLOCK_IN:
            return Point(part.block, Moment.ENTERING)
        case Site.BLOCK_OUT:
            return Point(part.block, Moment.LEAVING)
        case Site.ATTN_WRITE if part.attention is not None:
            return Point(part.attention.tap, Moment.LEAVING)
        case Site.MLP_WRITE if part.mlp is not None:
            return Point(part.mlp.tap, Moment.LEAVING)
        case Site.HEADS if part.attention is not None and part.attention.projection is not None:
            return Point(part.attention.projection, Moment.GIVEN)
        case Site.NEURONS if part.mlp is not None and part.mlp.projection is not None:
            return Point(part.mlp.projection, Moment.GIVEN)
        case _:
            return None


def _register(
    module: nn.Module, moments: Mapping[Moment, Sequence[_Store]], width: int
) -> Iterator[RemovableHandle]:
    """As few hooks as there can be: between two products the interpreter finds little of its own in the caches."""
    before = moments.get(Moment.ENTERING)
    left, given = moments.get(Moment.LEAVING), moments.get(Moment.GIVEN)

    def entering(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _keep(before or (), args[0] if args else kwargs["hidden_states"], width)

    def leaving(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if given:
            _keep(given, args[0], width)
        if left:
            _keep(left, first_tensor(output), width)

    if before:
        yield module.register_forward_pre_hook(entering, with_kwargs=True)
    if left or given:
        yield module.register_forward_hook(leaving)


def _keep(stores: Sequence[_Store], tensor: Tensor, width: int) -> None:
    rows = rows_of(tensor)
    for kept, slot, gather in stores:
        # index_select copies: Falcon adds to the tensor in place after the hook.
        shared = rows.shape[0] == width
        kept[slot] = rows.index_select(0, gather.position if shared else gather.index)


def _expert_hook(
    experts: RoutedExperts, gather: Gather, slot: int
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden, ids, weights = experts.arguments(args, kwargs)
        gather.routed[slot] = (
            rows_of(hidden).index_select(0, gather.index),
            ids.index_select(0, gather.index),
            weights.index_select(0, gather.index),
        )

    return hook
