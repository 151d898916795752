"""Dense results: heads, source tokens and the lens, from the readings of all parts."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float32

from lensd_api import ModelCard
from lensd_api.results import Span
from lensd_dla.reading import Array
from lensd_dla.rows import PartReading


def head_grid(parts: Sequence[PartReading], n_layers: int) -> Float32[Array, "pos layer head"] | None:
    """Heads' contributions; NaN in layers that were not split by head, ``None`` if none was."""
    return _on_layers([(p.part.layers, p.get("head")) for p in parts if "head" in p], n_layers)


def source_grid(parts: Sequence[PartReading], n_layers: int) -> Float32[Array, "pos layer head src"] | None:
    """Heads' contributions by source token, likewise."""
    return _on_layers([(p.part.layers, p.sources) for p in parts if p.sources is not None], n_layers)


def _on_layers(grids: Sequence[tuple[tuple[int, ...], Array]], n_layers: int) -> Array | None:
    if not grids:
        return None
    pos, _, *rest = grids[0][1].shape
    whole = np.full((pos, n_layers, *rest), np.nan, np.float32)
    for layers, grid in grids:
        whole[:, list(layers)] = grid
    return whole


def source_spans(sources: Float32[Array, "layer head src"], tokens: Sequence[str]) -> list[Span]:
    """The text's tokens, each with what all heads together move from it to the position read."""
    spans: list[Span] = []
    start = 0
    scores: list[float] = np.where(np.isnan(sources), 0.0, sources).sum((0, 1), np.float64).tolist()
    for token, score in zip(tokens, scores, strict=True):
        spans.append(Span(start, start + len(token), score))
        start += len(token)
    return spans


def lens_columns(
    groups: Sequence[tuple[tuple[int, ...], Sequence[PartReading]]], card: ModelCard
) -> dict[str, Sequence[Any]]:
    """Columns of ``lens``: position, layer and rank, then token, logit and probability."""
    names = ("position", "layer", "rank", "token", "token_id", "logit", "probability")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    text = cache(card.token_text)
    for positions, parts in groups:
        placed = [(layer, number, p) for p in parts for number, layer in enumerate(p.part.layers)]
        for i, position in enumerate(positions):
            for layer, number, p in sorted(placed, key=lambda place: place[0]):
                ids: list[int] = p.get("lens_token")[i, number].astype(np.int64).tolist()
                columns["position"] += [position] * len(ids)
                columns["layer"] += [layer] * len(ids)
                columns["rank"] += range(len(ids))
                columns["token"] += map(text, ids)
                columns["token_id"] += ids
                columns["logit"] += p.get("lens")[i, number].tolist()
                columns["probability"] += p.get("lens_probability")[i, number].tolist()
    return dict(columns)
