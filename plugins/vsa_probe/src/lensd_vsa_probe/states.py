"""Reads the states of many texts in bounded waves, so that others get their turn in between."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lensd_api import AnalysisError, Capture, ModelHandle, Row, patiently
from lensd_vsa_probe.reading import TOP_TOKENS, StateReading


@dataclass(slots=True)
class States:
    """Readings of texts, in the order of the texts; only rows in ``order[:done]`` are filled in.

    ``pooled`` [n, p], ``embedded`` [n, d_model], ``top`` [n, TOP_TOKENS], ``lens`` [n, 5].
    """

    order: tuple[int, ...]
    done: int
    pooled: Tensor
    embedded: Tensor
    top: Tensor
    lens: Tensor

    @classmethod
    def empty(cls, tokens: Sequence[Sequence[int]], d_pooled: int, d_model: int) -> Self:
        """Shortest texts first: rows of one length need no padding and always share one wave."""
        count = len(tokens)
        return cls(
            order=tuple(sorted(range(count), key=lambda i: (len(tokens[i]), i))),
            done=0,
            pooled=torch.zeros(count, d_pooled),
            embedded=torch.zeros(count, d_model),
            top=torch.full((count, TOP_TOKENS), -1),
            lens=torch.full((count, 5), -1),
        )

    def put(self, row: int, reading: StateReading) -> None:
        """Fills in one text. Raises AnalysisError for NaN and infinity."""
        check_finite(reading.pooled, f"text {row}")
        self.pooled[row] = reading.pooled
        self.embedded[row] = reading.embedded
        self.top[row, : len(reading.top)] = reading.top
        self.lens[row] = reading.lens


def check_finite(pooled: Tensor, what: str) -> None:
    """Raises AnalysisError for NaN and infinity."""
    if not bool(torch.isfinite(pooled).all()):
        raise AnalysisError(
            f"{what}: the model's states hold NaN or infinity; serve it in a wider dtype", reason="NOT_FINITE"
        )


def next_wave(states: States, tokens: Sequence[Sequence[int]], rows_at_once: int) -> list[int]:
    """The texts to run next: of one length, so that what shares their batch is always the same."""
    left = states.order[states.done : states.done + rows_at_once]
    return [row for row in left if len(tokens[row]) == len(tokens[left[0]])]


async def embed(
    states: States,
    tokens: Sequence[tuple[int, ...]],
    capture: Capture[StateReading],
    model: ModelHandle,
    rows_at_once: int,
) -> AsyncGenerator[None, None]:
    """Fills in what is missing of ``states``; yields after every wave.

    One wave runs at a time: whoever asks meanwhile waits for a short forward, never for the corpus.
    """
    while wave := next_wave(states, tokens, rows_at_once):
        readings = await patiently(model.forward, [Row(tokens[row]) for row in wave], capture)
        for row, reading in zip(wave, readings, strict=True):
            states.put(row, reading)
        states.done += len(wave)
        yield
