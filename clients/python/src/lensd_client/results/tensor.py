"""Tensors: dense arrays whose axes have names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lensd_client.results import html
from lensd_client.results.extras import require

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

Array = np.ndarray[Any, Any]

#: Names of element types to how their little-endian bytes are read. bfloat16 is not NumPy's.
ELEMENT_TYPES: Mapping[str, str] = {
    "float16": "<f2",
    "bfloat16": "<u2",
    "float32": "<f4",
    "float64": "<f8",
    "int8": "|i1",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
    "uint8": "|u1",
    "bool": "|b1",
}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Tensor:
    """A dense array with named axes.

    ``dtype`` is the element type on the wire; the array has the same one, except that
    ``bfloat16`` is widened to float32, which holds every value of it exactly. ``labels`` names
    the coordinates of the axes that have names for them.
    """

    array: Array
    axes: tuple[str, ...] = ()
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    unit: str = ""
    dtype: str = ""
    name: str = ""
    title: str = ""
    item: str = ""

    @classmethod
    def from_bytes(cls, data: bytes | bytearray, dtype: str, shape: Sequence[int], **given: Any) -> "Tensor":
        """Reads little-endian, row-major elements without copying them (bfloat16 excepted)."""
        array = np.frombuffer(data, ELEMENT_TYPES[dtype]).reshape(shape)
        if dtype == "bfloat16":
            # A bfloat16 is the upper half of the float32 of the same value.
            array = (array.astype(np.uint32) << 16).view(np.float32)
        return cls(array, dtype=dtype, **given)

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each dimension."""
        return self.array.shape

    @property
    def dims(self) -> tuple[str, ...]:
        """A name for every dimension, ``dim_0`` and so on where the server gave none."""
        return self.axes or tuple(f"dim_{i}" for i in range(self.array.ndim))

    def to_numpy(self) -> Array:
        """The array itself; read-only when it came in one message. Copy before you write."""
        return self.array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """So that NumPy functions take a tensor as it is."""
        return np.array(self.array, dtype=dtype, copy=copy)

    def to_xarray(self) -> "xr.DataArray":
        """A DataArray with the axes as dimensions and the labels as coordinates.

        Needs the ``xarray`` extra.
        """
        xarray = require("xarray", "xarray")
        coordinates = {axis: list(names) for axis, names in self.labels.items() if names}
        array: xr.DataArray = xarray.DataArray(
            self.array, dims=self.dims, coords=coordinates, name=self.name or None
        )
        if self.unit:
            array.attrs["units"] = self.unit
        return array

    def plot(self, *, at: Mapping[str, int | str] | None = None, ax: "Axes | None" = None) -> "Axes":
        """Draws the last two axes as a heat-map, the others fixed by ``at``. Needs the ``plot`` extra.

        See :func:`lensd_client.plot.heatmap`.
        """
        from lensd_client.plot import heatmap  # the extra is optional

        return heatmap(self, at=at, ax=ax)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{axis}={n}" for axis, n in zip(self.dims, self.shape, strict=True))
        unit = f" [{self.unit}]" if self.unit else ""
        return f"<Tensor {self.name!r}: {self.dtype or self.array.dtype} ({sizes}){unit}>"

    def _repr_html_(self) -> str:
        matrix = self.array
        fixed: list[str] = []
        for axis in self.dims[: max(0, matrix.ndim - 2)]:
            fixed.append(f"{axis}={matrix.shape[0] - 1}")
            if not matrix.size:
                return f"<p>{html.escape(repr(self))}</p>"
            matrix = matrix[-1]
        if matrix.ndim != 2 or not matrix.size:
            return f"<p>{html.escape(repr(self))}</p><pre>{html.escape(self.array)}</pre>"
        rows = matrix[: html.SHOWN, : html.SHOWN]
        left, right = self.dims[-2:]
        heads = [f"{left} \\ {right}", *self._names(right, rows.shape[1])]
        cells = [[name, *row] for name, row in zip(self._names(left, len(rows)), rows.tolist(), strict=True)]
        at = f" at {', '.join(fixed)}" if fixed else ""
        note = repr(self) if rows.size == matrix.size else f"{self!r}, its first rows and columns"
        return html.table(heads, cells, caption=(self.title or self.name) + at, note=note)

    def _names(self, axis: str, n: int) -> list[str]:
        names = list(self.labels.get(axis, ()))
        return names[:n] if names else [str(i) for i in range(n)]
