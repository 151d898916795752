"""The results of one item, built up group by group of its positions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import tanh
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from lensd_api import Anatomy, ModelCard, Record, Result, Table, Unit
from lensd_api import Tensor as TensorResult
from lensd_api import Text as TextResult
from lensd_dla import completeness, grids, tables
from lensd_dla.items import Item
from lensd_dla.params import DlaParams
from lensd_dla.plan import COARSER, unit_offered
from lensd_dla.reading import Array
from lensd_dla.readout import ReadOut
from lensd_dla.rows import PartReading, build_segments, logit_of, rounding_segment

_LENS_TITLE = "Logit lens: the stream after each layer through the final norm, with its own statistics"
_UNITS = {"value": "logit", "direct_effect": "logit"}


@dataclass(slots=True)
class ItemReport:
    """Collects what the groups of one item gave; raises when rows do not add up."""

    item: Item
    read_out: ReadOut
    params: DlaParams
    card: ModelCard
    _logits: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    _tolerance: float = 0.0
    _heads: list[Array] = field(default_factory=list[Array])
    _sources: list[Array] = field(default_factory=list[Array])
    _lens: list[tuple[tuple[int, ...], Sequence[PartReading]]] = field(
        default_factory=list[tuple[tuple[int, ...], Sequence[PartReading]]]
    )
    _nmae: float | None = None

    @np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused, not warned of
    def add(self, positions: tuple[int, ...], parts: Sequence[PartReading], *, last: bool) -> Table:
        """The rows of one group. Raises IncompleteDecomposition and NotFinite."""
        segments = build_segments(parts, self.params.top_k)
        rounding = rounding_segment(parts)
        values = tables.all_values(segments)
        logit, total = logit_of(parts[0]), values.sum(1)
        error = np.abs(logit - total)
        tolerance = completeness.tolerance_for(self.card.dtype, values)
        self._check(positions, parts, error, tolerance)
        self._tolerance = float(tolerance[-1])
        self._note_logits(positions, parts[0], logit, total, error, rounding.values[:, 0])
        self._note_grids(positions, parts)
        if self.params.direct_effect:
            self._nmae = tables.nmae(segments, -1)
        columns = tables.contribution_columns(
            [*segments, rounding],
            positions,
            with_source=self.params.unit is Unit.SOURCE,
            with_effects=self.params.direct_effect,
        )
        units = {name: unit for name, unit in _UNITS.items() if name in columns}
        return Table("contributions", columns, units=units, item=self.item.name, last=last)

    def finish(self) -> Iterator[Result]:
        """Everything that is not streamed, the summary last."""
        name = self.item.name
        yield Table("logits", {key: [row[key] for row in self._logits] for key in self._logits[0]}, item=name)
        labels = {"position": [str(position) for position in self.item.positions]}
        if self._heads:
            axes = ("position", "layer", "head")
            yield TensorResult("heads", _whole(self._heads), axes, labels, unit="logit", item=name)
        if self._sources:
            texts = [self.card.token_text(token) for token in self.item.tokens]
            axes, labels = ("position", "layer", "head", "source"), {**labels, "source": texts}
            yield TensorResult("sources", _whole(self._sources), axes, labels, unit="logit", item=name)
            spans = grids.source_spans(self._sources[-1][-1], texts)
            yield TextResult("sources_text", "".join(texts), spans, item=name)
        if self._lens:
            yield Table("lens", grids.lens_columns(self._lens, self.card), title=_LENS_TITLE, item=name)
        yield Record("summary", self._summary(), item=name)

    def _check(
        self,
        positions: tuple[int, ...],
        parts: Sequence[PartReading],
        error: Float64[Array, "pos"],
        tolerance: Float64[Array, "pos"],
    ) -> None:
        coarser = COARSER.get(self.params.unit)
        # Layers first: they can say where a split is wrong.
        for p in parts:
            for name in ("attn_gap", "mlp_gap"):
                if name in p:
                    completeness.check_layers(p.get(name), tolerance, positions, p.part.layers, coarser)
        completeness.check_complete(error, tolerance, positions, coarser)

    def _note_logits(
        self, positions: tuple[int, ...], first: PartReading, *numbers: Float64[Array, "pos"]
    ) -> None:
        """``numbers`` are the logit, the sum of the rows, what they miss it by, and the rounding."""
        raw: list[float] = first.get("logit").tolist()
        contrasts: list[float] | None = None
        if "logit:contrast" in first:
            contrasts = first.get("logit:contrast").tolist()
        targets: list[int] = first.get("target").astype(np.int64).tolist()
        columns = zip(positions, *(column.tolist() for column in numbers), strict=True)
        for i, (position, logit, summed, gap, left) in enumerate(columns):
            target = None if self.read_out.direction is not None else targets[i]
            self._logits.append(
                {
                    "position": position,
                    "target": None if target is None else self.card.token_text(target),
                    "target_id": target,
                    "logit": logit,
                    "logit_model_units": None
                    if contrasts is None
                    else self._model_units(raw[i], contrasts[i]),
                    "sum": summed,
                    "completeness_error": gap,
                    "rounding": left,
                }
            )

    def _model_units(self, target: float, contrast: float) -> float:
        """What the model itself returns for the target, minus the contrast where there is one."""
        value = model_logit(target, self.card.anatomy)
        return value if self.read_out.contrast is None else value - model_logit(contrast, self.card.anatomy)

    def _note_grids(self, positions: tuple[int, ...], parts: Sequence[PartReading]) -> None:
        n_layers = self.card.anatomy.n_layers
        if (heads := grids.head_grid(parts, n_layers)) is not None:
            self._heads.append(heads)
        if (sources := grids.source_grid(parts, n_layers)) is not None:
            self._sources.append(sources)
        if self.params.lens:
            self._lens.append((positions, parts))

    def _summary(self) -> dict[str, Any]:
        anatomy, last = self.card.anatomy, self._logits[-1]
        units, logit, contrast = last["logit_model_units"], last["logit"], self.read_out.contrast
        summary: dict[str, Any] = {
            "tokens": [self.card.token_text(token) for token in self.item.tokens],
            "token_ids": list(self.item.tokens),
            "position": last["position"],
            "target": last["target"],
            "target_id": last["target_id"],
            "contrast": None if contrast is None else self.card.token_text(contrast),
            "contrast_id": contrast,
            "logit": logit,
            "logit_model_units": units,
            "logit_factor": units / logit if units is not None and logit else None,
            "sum": last["sum"],
            "completeness_error": last["completeness_error"],
            "rounding": last["rounding"],
            "tolerance": self._tolerance,
            "norm": _describe_norm(anatomy),
            "unit": self.params.unit.value,
            "units": [unit_offered(layer, self.params.unit).value for layer in anatomy.layers],
        }
        if self.params.direct_effect:
            summary["nmae"] = self._nmae
        return summary


def _whole(groups: Sequence[Array]) -> torch.Tensor:
    """The positions of all groups."""
    return torch.as_tensor(np.concatenate(groups))


def model_logit(raw: float, anatomy: Anatomy) -> float:
    """What the model makes of a logit of its head: scaled, then soft-capped."""
    scaled, cap = anatomy.logit_scale * raw, anatomy.logit_softcap
    return scaled if cap is None else cap * tanh(scaled / cap)


def _describe_norm(anatomy: Anatomy) -> dict[str, Any] | None:
    norm = anatomy.final_norm
    if norm is None:
        return None
    kind = "layernorm" if norm.centre else "rmsnorm"
    return {"kind": kind, "gain": norm.gain, "has_bias": norm.has_bias, "eps": norm.eps}
