"""Runs an analyzer on an inspected model without server, threads or batching.

What is tested here is the numbers: a forward runs where it is awaited, all its rows together.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lensd_api import Analyzer, Anatomy, Capture, InvalidParams, ItemError, Record, Result, Row, Stack, Table
from lensd_server.engine.anatomy.capture import GatherGroup, run_batch
from lensd_server.engine.anatomy.inspect import InspectedModel, inspect_model


@dataclass(slots=True)
class DirectModel:
    """A ModelHandle over an inspected model; ``forwards`` counts what ran."""

    inspected: InspectedModel
    tokenizer: PreTrainedTokenizerBase
    dtype: str = "float32"
    name: str = "direct"
    revision: str = "0"
    forwards: int = 0

    @classmethod
    def of(cls, module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "DirectModel":
        return cls(inspect_model(module), tokenizer, dtype=str(module.dtype).removeprefix("torch."))

    @property
    def anatomy(self) -> Anatomy:
        return self.inspected.anatomy

    def encode(self, text: str, *, special_tokens: bool = True, field: str = "prompt") -> tuple[int, ...]:
        tokens = tuple(self.tokenizer.encode(text, add_special_tokens=special_tokens))
        if not 0 < len(tokens) <= self.anatomy.context_length:
            raise InvalidParams.field(field, f"{len(tokens)} tokens")
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens))

    def token_text(self, token: int) -> str:
        return self.tokenizer.decode([token])

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], *, field: str = "messages"
    ) -> tuple[int, ...]:
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return self.encode(str(text), special_tokens=False, field=field)

    async def forward(self, rows: Sequence[Row], capture: Capture[Any]) -> list[Any]:
        return self.run_together(rows, [capture] * len(rows))

    def run_together(self, rows: Sequence[Row], captures: Sequence[Capture[Any]]) -> list[Any]:
        """One batch; the captures differ at most in positions and arguments of their reduce."""
        self.forwards += 1
        lengths = [len(row.tokens) for row in rows]
        ids = torch.zeros(len(rows), max(lengths), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : lengths[i]] = torch.tensor(row.tokens)
            mask[i, : lengths[i]] = 1
        first = captures[0]
        assert first.reduce is not None
        layers = tuple(range(self.anatomy.n_layers)) if first.layers is None else first.layers
        positions = tuple(
            tuple(int(p) % length for p in capture.positions)
            for capture, length in zip(captures, lengths, strict=True)
        )
        group = GatherGroup(first.sites, layers, tuple(range(len(rows))), positions)
        (values,) = run_batch(self.inspected, ids, mask, None, lengths, [group])
        args = [None if capture.reduce is None else capture.reduce.args for capture in captures]
        stack = Stack(values, args, positions, tuple(row.tokens for row in rows), layers)
        with torch.inference_mode():
            return list(first.reduce.fn(stack, self.inspected.view))


@dataclass(slots=True)
class DirectContext:
    """A Context that only notes what it is told."""

    model: DirectModel
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    request_id: str = "direct"
    artifacts: Any = None
    cancelled: bool = False
    warnings: list[tuple[str, str]] = field(default_factory=list)
    progressed: list[tuple[float, float]] = field(default_factory=list)

    def progress(self, done: float, total: float = 0.0, *, stage: str = "", unit: str = "") -> None:
        self.progressed.append((done, total))

    def warn(self, reason: str, message: str, *, item: str = "") -> None:
        self.warnings.append((reason, message))

    async def compute(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything an analysis yielded."""

    results: tuple[Result, ...]
    context: DirectContext

    def one(self, name: str, item: str = "") -> Any:
        """The only result of that name and item, tables joined to plain columns."""
        found = [r for r in self.results if r.name == name and r.item == item]
        if found and isinstance(found[0], Table):
            return {
                key: [v for table in found for v in _listed(table.columns[key])] for key in found[0].columns
            }
        assert len(found) == 1, f"{len(found)} results {name!r} of item {item!r}"
        return found[0].values if isinstance(found[0], Record) else found[0]

    def errors(self) -> dict[str, ItemError]:
        return {r.item: r for r in self.results if isinstance(r, ItemError)}


def answer(analyzer: Analyzer, model: DirectModel, params: Mapping[str, Any], **tensors: Tensor) -> Answer:
    """Runs one analysis to its end; what it raises comes through."""
    context = DirectContext(model, tensors)

    async def collect() -> tuple[Result, ...]:
        return tuple([r async for r in analyzer.analyze(analyzer.Params.parse(params), context)])

    return Answer(asyncio.run(collect()), context)


def _listed(column: Any) -> list[Any]:
    return column.tolist() if hasattr(column, "tolist") else list(column)
