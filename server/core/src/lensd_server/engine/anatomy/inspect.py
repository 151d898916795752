"""From a loaded model to its verified anatomy.

Parts are found by structure, then every identity an analysis will rely on is checked on real
numbers in three short forwards. What does not hold is refused with the reason, layer by layer.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lensd_api import Site, Unit
from lensd_server.engine.anatomy.attention import AttentionCall, install_recorder, recording, remove_recorder
from lensd_server.engine.anatomy.capture import run_gathers
from lensd_server.engine.anatomy.describe import describe
from lensd_server.engine.anatomy.embeddings import derive_embeddings
from lensd_server.engine.anatomy.gather import GatherGroup
from lensd_server.engine.anatomy.identity import deviation, tolerance
from lensd_server.engine.anatomy.layers import Layer, derive_layers, grant_source, refuse
from lensd_server.engine.anatomy.probe import Trace, trace_model
from lensd_server.engine.anatomy.readout import derive_read_out
from lensd_server.engine.anatomy.skeleton import Skeleton, find_skeleton, rows_of, unsupported
from lensd_server.engine.anatomy.structure import InspectedModel, Structure
from lensd_server.engine.anatomy.view import WeightView

__all__ = ["InspectedModel", "inspect_model"]

#: Why a model whose code does not use transformers' AttentionInterface has no SOURCE.
_NO_INTERFACE = "its attention does not go through transformers' AttentionInterface"

_SOURCE_SITES = frozenset({Site.HEADS, Site.ATTENTION, Site.VALUES})


def inspect_model(module: PreTrainedModel) -> InspectedModel:
    """Derives and verifies the anatomy of a causal language model in eval mode.

    Raises LoadFailed when it is no decoder as understood here, or when rows of one batch would
    influence each other. The attention implementation is switched to a recording one of the
    same numbers where that is possible; nothing else of the model changes.
    """
    skeleton = find_skeleton(module)
    trace = trace_model(skeleton)
    read_out = derive_read_out(skeleton, trace)
    structure = Structure(
        skeleton=skeleton,
        layers=derive_layers(skeleton, trace, read_out),
        embeddings=derive_embeddings(skeleton, trace),
        read_out=read_out,
        attention_layers=_record_attention(skeleton, trace),
        takes_position_ids="position_ids" in inspect.signature(module.forward).parameters,
        needs_mask=False,
    )
    structure, run = _verified_batching(structure, trace)
    structure = replace(structure, layers=_verified_sources(structure, run))
    anatomy = describe(structure)
    view = WeightView(anatomy, skeleton, structure.layers, read_out)
    _verify_view(view, structure, run.whole)
    return InspectedModel(module, anatomy, view, structure)


@torch.inference_mode()
def _record_attention(skeleton: Skeleton, trace: Trace) -> dict[nn.Module, int]:
    """Installs the recorder and finds the layer of each module it is shown; empty without it."""
    module = skeleton.module
    if not install_recorder(module):
        return {}
    seen: dict[nn.Module, int] = {}
    layer_of = {inner: i for i, block in enumerate(skeleton.blocks) for inner in block.modules()}

    def note(attention: nn.Module, call: AttentionCall) -> None:
        if attention in layer_of:
            seen[attention] = layer_of[attention]

    with recording(note):
        logits = module(input_ids=trace.tokens, use_cache=False).logits
    # Same kernels, same batch: nothing may change. A lost mask would show here at once.
    if not seen or not _close(rows_of(logits), trace.logits):
        remove_recorder(module)
        return {}
    return seen


@dataclass(frozen=True, slots=True)
class _BatchRun:
    """Captures of one padded batch: all there is to verify from it, since every forward delays a start.

    ``last`` are the logits at the last position of each row, ``whole`` the final residual and the logits
    at every position of the first row, ``sources`` its heads, attention weights and values in ``layers``.
    """

    last: Tensor
    whole: dict[Site, Tensor]
    sources: dict[Site, Tensor]
    layers: tuple[int, ...]


def _verified_batching(structure: Structure, trace: Trace) -> tuple[Structure, _BatchRun]:
    """``structure`` with the mask it needs so that a padded row equals itself alone."""
    length = trace.tokens.shape[1]
    short = max(1, length - 4)
    expected = trace.logits[[length - 1, short - 1]]
    for candidate in (structure, replace(structure, needs_mask=True)):
        run = _run_padded(candidate, trace.tokens, short)
        if _close(run.last, expected):
            return candidate, run
    raise unsupported(structure.skeleton.module, "a padded row gives other logits than the same row alone")


def _run_padded(structure: Structure, row: Tensor, short: int) -> _BatchRun:
    """Runs ``row`` [1, n] beside its first ``short`` tokens, padded."""
    length = row.shape[1]
    tokens = row.expand(2, length).clone()
    tokens[1, short:] = tokens[1, 0]
    mask = torch.ones_like(tokens)
    mask[1, short:] = 0
    every = (tuple(range(length)),)
    layers = _layers_with_sources(structure)
    groups = [
        GatherGroup(frozenset({Site.LOGITS}), (), (0, 1), ((length - 1,), (short - 1,))),
        GatherGroup(frozenset({Site.FINAL_RESIDUAL, Site.LOGITS}), (), (0,), every),
    ]
    if layers:
        groups.append(GatherGroup(_SOURCE_SITES, layers, (0,), every))
    last, whole, *sources = run_gathers(structure, tokens, mask, None, (length, short), groups)
    return _BatchRun(last[Site.LOGITS], whole, sources[0] if sources else {}, layers)


def _layers_with_sources(structure: Structure) -> tuple[int, ...]:
    """Layers whose attention is recorded and whose heads are offered."""
    recorded = set(structure.attention_layers.values())
    return tuple(i for i in sorted(recorded) if Unit.HEAD in structure.layers[i].anatomy.units)


def _verified_sources(structure: Structure, run: _BatchRun) -> tuple[Layer, ...]:
    """The layers with SOURCE granted where weights times values give the head outputs."""
    recorded = set(structure.attention_layers.values())
    errors = dict(zip(run.layers, _source_errors(run.sources), strict=True)) if run.layers else {}
    limit = tolerance(structure.skeleton.dtype)
    return tuple(
        layer
        if Unit.SOURCE in layer.anatomy.refused
        else grant_source(layer, errors[i], limit)
        if i in errors
        else refuse(layer, Unit.SOURCE, "heads are not offered" if i in recorded else _NO_INTERFACE)
        for i, layer in enumerate(structure.layers)
    )


def _source_errors(kept: Mapping[Site, Tensor]) -> list[float]:
    """Per captured layer, how far attention weights times values are from the head outputs."""
    weights = kept[Site.ATTENTION].double()  # [pos, layer, head, src]
    values = kept[Site.VALUES].double()  # [src, layer, head, head_dim]
    heads = kept[Site.HEADS]  # [pos, layer, head, head_dim]
    found = torch.einsum("plhs,slhe->plhe", weights, values)
    if found.shape != heads.shape:
        return [float("inf")] * heads.shape[1]
    magnitude = torch.einsum("plhs,slhe->plhe", weights, values.abs())
    return [deviation(found[:, i], heads[:, i], magnitude[:, i]) for i in range(heads.shape[1])]


def _verify_view(view: WeightView, structure: Structure, whole: Mapping[Site, Tensor]) -> None:
    if structure.read_out.problem:
        return
    if not _close(view.logits(whole[Site.FINAL_RESIDUAL]), whole[Site.LOGITS]):
        raise unsupported(structure.skeleton.module, "its logits do not follow from its last residual stream")


def _close(found: Tensor, expected: Tensor) -> bool:
    """Whether logits of the same tokens agree.

    Another batch means other kernels: rounding of all layers adds up, 1e-4 of the largest logit in
    fp32 and 16 epsilons in shorter types. A missing mask or norm is off by about the logits themselves.
    """
    limit = max(1e-4, 16 * torch.finfo(expected.dtype).eps) * expected.abs().max()
    return bool((found.float() - expected.float()).abs().max() <= limit)
