"""One forward of a padded batch that keeps the asked activations at the asked positions, nothing else.

Positions are gathered on the device inside the hooks; a full activation cache never exists, nor
do logits of positions nobody asked for. Hooks are gone when :func:`run_batch` returns or raises.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from lensd_api import RequirementNotMet, Site
from lensd_server.engine.anatomy.attention import recording
from lensd_server.engine.anatomy.gather import Gather, GatherGroup
from lensd_server.engine.anatomy.hooks import HookSet
from lensd_server.engine.anatomy.past import LaneCache
from lensd_server.engine.anatomy.sites import check_sites
from lensd_server.engine.anatomy.structure import InspectedModel, Structure

__all__ = ["GatherGroup", "check_sites", "run_batch"]


def run_batch(
    model: InspectedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    position_ids: Tensor | None,
    lengths: Sequence[int],
    groups: Sequence[GatherGroup],
    cache: LaneCache | None = None,
) -> list[dict[Site, Tensor]]:
    """Runs right-padded rows [B, T] once and answers each group's stacked captures.

    ``attention_mask`` is 1 where a token is seen and 0 on padding; ``lengths`` are the rows'
    own. Shapes are those of :class:`lensd_api.Stack`, in the group's layers. Raises
    RequirementNotMet for sites the model does not offer, or position ids it does not take.

    With a ``cache`` the rows are what follows its pasts: ``attention_mask`` is [B, offset + T], with
    zeros before the beginning of a past, positions count from the first new token, and ATTENTION and
    VALUES have the row's past among their sources.
    """
    for group in groups:
        check_sites(model.anatomy, group.sites, group.layers)
    return run_gathers(model.structure, input_ids, attention_mask, position_ids, lengths, groups, cache)


@torch.inference_mode()
def run_gathers(
    structure: Structure,
    input_ids: Tensor,
    attention_mask: Tensor,
    position_ids: Tensor | None,
    lengths: Sequence[int],
    groups: Sequence[GatherGroup],
    cache: LaneCache | None = None,
) -> list[dict[Site, Tensor]]:
    """:func:`run_batch` without the check: for the inspection, which finds out what is offered."""
    width = input_ids.shape[1]
    gathers = [Gather(group, width, lengths, structure.skeleton.device) for group in groups]
    if cache is None:
        inputs = _inputs(structure, input_ids, attention_mask, position_ids, lengths)
    else:
        inputs = _continued(structure, input_ids, attention_mask, position_ids, lengths, cache)
    hooks = HookSet(structure, gathers, width, cache)
    with ExitStack() as stack:
        stack.enter_context(hooks)
        if hooks.records_attention:
            stack.enter_context(recording(hooks.record))
        module: Any = structure.skeleton.module
        past = None if cache is None else cache.for_model()
        logits: Tensor = module(**inputs, past_key_values=past, use_cache=cache is not None).logits
    hooks.keep_logits(logits)
    return [gather.captures(structure) for gather in gathers]


def _inputs(
    structure: Structure,
    input_ids: Tensor,
    attention_mask: Tensor,
    position_ids: Tensor | None,
    lengths: Sequence[int],
) -> dict[str, Tensor]:
    device = structure.skeleton.device
    inputs = {"input_ids": input_ids.to(device)}
    if position_ids is not None and not structure.takes_position_ids:
        raise _no_position_ids(structure)
    only_padding_masked = int(attention_mask.sum()) == sum(lengths)
    if only_padding_masked and position_ids is None and not structure.needs_mask:
        # Padding comes last and cannot reach back under a causal mask. Without a mask of its own
        # scaled_dot_product_attention takes its fast causal path.
        return inputs
    # Position ids never go without a mask: transformers would take their jumps for packed sequences.
    inputs["attention_mask"] = attention_mask.to(device)
    if structure.takes_position_ids:
        if position_ids is None:
            # Stated, since some (OPT) would otherwise count seen tokens only.
            position_ids = torch.arange(input_ids.shape[1]).expand(input_ids.shape)
        inputs["position_ids"] = position_ids.to(device)
    return inputs


def _continued(
    structure: Structure,
    input_ids: Tensor,
    attention_mask: Tensor,
    position_ids: Tensor | None,
    lengths: Sequence[int],
    cache: LaneCache,
) -> dict[str, Tensor]:
    device = structure.skeleton.device
    inputs = {"input_ids": input_ids.to(device)}
    if position_ids is not None and not structure.takes_position_ids:
        raise _no_position_ids(structure)
    lanes, width = input_ids.shape
    if not structure.needs_mask:
        # New tokens cannot see the padding behind them; padding that sees nothing at all would be NaN.
        slots = torch.arange(cache.offset + width)
        behind = slots >= cache.offset + torch.tensor(lengths)[:, None]
        attention_mask = attention_mask.masked_fill(behind, 1)
    if not bool(attention_mask.all()):
        inputs["attention_mask"] = attention_mask.to(device)
    if structure.takes_position_ids:
        if position_ids is None:
            pasts = [cache.offset - cache.begins(lane) for lane in range(lanes)]
            position_ids = count_positions(pasts, lengths, width)
        inputs["position_ids"] = position_ids.to(device)
    return inputs


def count_positions(starts: Sequence[int], lengths: Sequence[int], width: int) -> Tensor:
    """[B, width] positions of rows that begin at ``starts``. Padding has that of its row's last token: others
    may lie beyond the context, where a model has none, or change what it makes of all rows."""
    last = torch.tensor(lengths)[:, None] - 1
    return torch.minimum(torch.arange(width), last) + torch.tensor(starts)[:, None]


def _no_position_ids(structure: Structure) -> RequirementNotMet:
    name = type(structure.skeleton.module).__name__
    return RequirementNotMet(f"{name} takes no position ids; leave them out of the row")
