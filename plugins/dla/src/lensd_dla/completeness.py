"""When rows are refused because they do not add up.

Two identities are checked, from different sides: the rows must add up to the logit of the
model's own head, and the rows of each layer to what the layer was seen to write.
"""

from math import isfinite

import numpy as np
from jaxtyping import Float

from lensd_api import AnalysisError
from lensd_dla.reading import Array

#: Allowed gap as a share of the sum of all magnitudes. The stream is rounded at every add, so the
#: share is about a hundred roundings of the element type; a wrong split misses by far more.
TOLERANCES = {"float64": 1e-9, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}


class IncompleteDecomposition(AnalysisError):
    """Rows do not add up within tolerance; nothing was returned for the item."""

    reason = "INCOMPLETE_DECOMPOSITION"

    def __init__(self, *, where: str, gap: float, tolerance: float, coarser: str | None) -> None:
        advice = (
            "no coarser unit is left, serve the model in a wider dtype"
            if coarser is None
            else f"ask for unit='{coarser}', which needs no such split"
        )
        super().__init__(
            f"{where}: rows miss by {gap:.2e} (tolerance {tolerance:.1e}); {advice}",
            metadata={"gap": f"{gap:.3e}", "tolerance": f"{tolerance:.3e}", "coarser_unit": coarser or ""},
        )
        self.gap = gap
        self.tolerance = tolerance


class NotFinite(AnalysisError):
    """The model produced NaN or infinity, so there is nothing to attribute."""

    reason = "NOT_FINITE"


def tolerance_for(dtype: str, values: Float[Array, "pos row"]) -> Float[Array, "pos"]:
    """Largest acceptable gap at each position for rows ``values`` of a ``dtype`` model."""
    share = TOLERANCES.get(dtype, TOLERANCES["bfloat16"])
    return share * np.maximum(np.abs(values).sum(1), 1.0)


def check_complete(
    gaps: Float[Array, "pos"], tolerance: Float[Array, "pos"], positions: tuple[int, ...], coarser: str | None
) -> None:
    """Raises IncompleteDecomposition at the first position whose gap is beyond tolerance."""
    # An infinite row makes its own tolerance infinite: look at the gap alone, too.
    right = np.isfinite(gaps) & (gaps <= tolerance)
    if not right.all():
        i = int(right.argmin())
        gap = float(gaps[i])
        if not isfinite(gap):
            raise NotFinite(
                f"position {positions[i]}: the model's logit or activations are NaN or infinite; "
                "serve it in a wider dtype"
            )
        where = f"position {positions[i]}, against the model's own logit"
        raise IncompleteDecomposition(where=where, gap=gap, tolerance=float(tolerance[i]), coarser=coarser)


def check_layers(
    gaps: Float[Array, "pos layer"],
    tolerance: Float[Array, "pos"],
    positions: tuple[int, ...],
    layers: tuple[int, ...],
    coarser: str | None,
) -> None:
    """Like :func:`check_complete`, for ``gaps`` against what each layer wrote."""
    wrong = gaps > tolerance[:, None]
    if wrong.any():
        pos, layer = np.argwhere(wrong)[0]
        where = f"position {positions[pos]}, layer {layers[layer]}, against what the layer wrote"
        raise IncompleteDecomposition(
            where=where, gap=float(gaps[pos, layer]), tolerance=float(tolerance[pos]), coarser=coarser
        )
