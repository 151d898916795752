"""One short forward of a model that keeps what the parts of every block saw and gave.

The rest of the inspection reasons about these numbers only; the hooks are gone when it starts.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lensd_server.engine.anatomy.skeleton import (
    Skeleton,
    first_tensor,
    input_by_output,
    is_projection,
    rows_of,
)

_LENGTH = 12


@dataclass(frozen=True, slots=True)
class Call:
    """The last call of a module: tensors it was given by parameter name, and its first output."""

    given: Mapping[str, Tensor]
    output: Tensor

    @property
    def input(self) -> Tensor:
        """The first tensor given."""
        return next(iter(self.given.values()))


@dataclass(slots=True)
class BlockTrace:
    """What went through one block; every tensor is [n, width] and a copy."""

    block: nn.Module
    entry: Tensor = field(default_factory=lambda: torch.empty(0))
    exit: Tensor = field(default_factory=lambda: torch.empty(0))
    #: In the order in which modules were last called.
    calls: dict[nn.Module, Call] = field(default_factory=dict[nn.Module, Call])


@dataclass(slots=True)
class Trace:
    """What went through the model for :attr:`tokens` [1, n]."""

    tokens: Tensor
    logits: Tensor
    blocks: tuple[BlockTrace, ...]
    #: Direct children of the decoder that are not blocks, and the output head.
    outer: dict[nn.Module, Call]


def probe_tokens(skeleton: Skeleton) -> Tensor:
    """[1, n] seeded token ids from all over the vocabulary."""
    generator = torch.Generator().manual_seed(0)
    length = min(_LENGTH, skeleton.context_length)
    tokens = torch.randint(skeleton.vocab_size, (1, length), generator=generator)
    return tokens.to(skeleton.device)


@torch.inference_mode()
def trace_model(skeleton: Skeleton) -> Trace:
    """Runs the model once on :func:`probe_tokens` and keeps what its parts saw and gave."""
    tokens = probe_tokens(skeleton)
    blocks = tuple(BlockTrace(block) for block in skeleton.blocks)
    outer: dict[nn.Module, Call] = {}
    with _hooks() as handles:
        for trace in blocks:
            _watch_block(trace, handles, skeleton.d_model)
        for child in {*skeleton.decoder.children(), skeleton.token_embedding, skeleton.head}:
            if not isinstance(child, nn.ModuleList):
                handles.append(child.register_forward_hook(_keep(outer), with_kwargs=True))
        logits = skeleton.module(input_ids=tokens, use_cache=False).logits
    return Trace(tokens, rows_of(logits), blocks, outer)


def holds_experts(module: nn.Module) -> bool:
    """Whether the weights of several experts are fused into the module's own 3-D parameters."""
    return any(parameter.ndim == 3 for parameter in module.parameters(recurse=False))


def _watch_block(trace: BlockTrace, handles: list[RemovableHandle], d_model: int) -> None:
    children = set(trace.block.children())

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        trace.entry = rows_of(_tensors(args, kwargs)[0]).clone()

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        trace.exit = rows_of(first_tensor(output)).clone()

    handles.append(trace.block.register_forward_pre_hook(enter, with_kwargs=True))
    handles.append(trace.block.register_forward_hook(leave))
    for module in trace.block.modules():
        writes = is_projection(module) and input_by_output(module).shape[1] == d_model
        if module is not trace.block and (module in children or writes or holds_experts(module)):
            handles.append(module.register_forward_hook(_keep(trace.calls), with_kwargs=True))


def _keep(calls: dict[nn.Module, Call]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.pop(module, None)  # so that the order is that of last calls
        given = _given(module, args, kwargs)
        calls[module] = Call(given, rows_of(first_tensor(output)).clone())

    return hook


def _given(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
    bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    return {
        name: rows_of(value).clone()
        for name, value in bound.items()
        if isinstance(value, Tensor) and value.ndim > 0
    }


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    return [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]


@contextmanager
def _hooks() -> Iterator[list[RemovableHandle]]:
    handles: list[RemovableHandle] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()
