"""Dense results: heads, source tokens and the lens, from the readings of all parts."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from lensd_api import ModelCard
from lensd_api.results import Span
from lensd_dla.reading import floats, integers
from lensd_dla.rows import PartReading


def head_grid(parts: Sequence[PartReading], n_layers: int) -> Float32[Tensor, "pos layer head"] | None:
    """Heads' contributions; NaN in layers that were not split by head, ``None`` if none was."""
    grids = [(p.part.layers, p.reading.get("head")) for p in parts if "head" in p.reading]
    return _on_layers(grids, n_layers)


def source_grid(parts: Sequence[PartReading], n_layers: int) -> Float32[Tensor, "pos layer head src"] | None:
    """Heads' contributions by source token, likewise."""
    grids = [(p.part.layers, p.reading.sources) for p in parts if p.reading.sources is not None]
    return _on_layers(grids, n_layers)


def _on_layers(grids: Sequence[tuple[tuple[int, ...], Tensor]], n_layers: int) -> Tensor | None:
    if not grids:
        return None
    pos, _, *rest = grids[0][1].shape
    whole = torch.full((pos, n_layers, *rest), torch.nan)
    for layers, grid in grids:
        whole[:, list(layers)] = grid.float()
    return whole


def source_spans(sources: Float32[Tensor, "layer head src"], tokens: Sequence[str]) -> list[Span]:
    """The text's tokens, each with what all heads together move from it to the position read."""
    spans: list[Span] = []
    start = 0
    for token, score in zip(tokens, floats(torch.nansum(sources, dim=(0, 1))), strict=True):
        spans.append(Span(start, start + len(token), score))
        start += len(token)
    return spans


def lens_columns(
    groups: Sequence[tuple[tuple[int, ...], Sequence[PartReading]]], card: ModelCard
) -> dict[str, Sequence[Any]]:
    """Columns of ``lens``: position, layer and rank, then token, logit and probability."""
    names = ("position", "layer", "rank", "token", "token_id", "logit", "probability")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    texts: dict[int, str] = {}
    for positions, parts in groups:
        placed = [(layer, number, p) for p in parts for number, layer in enumerate(p.part.layers)]
        for i, position in enumerate(positions):
            for layer, number, p in sorted(placed, key=lambda place: place[0]):
                ids = integers(p.reading.get("lens_token")[i, number])
                columns["position"] += [position] * len(ids)
                columns["layer"] += [layer] * len(ids)
                columns["rank"] += range(len(ids))
                columns["token"] += [texts.setdefault(t, card.token_text(t)) for t in ids]
                columns["token_id"] += ids
                columns["logit"] += floats(p.reading.get("lens")[i, number])
                columns["probability"] += floats(p.reading.get("lens_probability")[i, number])
    return dict(columns)
