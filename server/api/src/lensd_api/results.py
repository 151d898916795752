"""What an analyzer yields. Values only: the server turns them into messages and chunks.

Columns and tensors may be anything NumPy can read without copying: lists, arrays, tensors. The server takes
a copy of what is yielded, so that a buffer may be filled again for the next result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lensd_api.errors import LensdError


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of equal length. ``None`` marks a missing value; ``units`` are per column.

    Yield several tables of one (name, item) to stream rows: set ``last=False`` on all but the
    final one.
    """

    name: str
    columns: Mapping[str, Sequence[Any]]
    units: Mapping[str, str] = field(default_factory=dict[str, str])
    title: str = ""
    item: str = ""
    last: bool = True


@dataclass(frozen=True, slots=True)
class Tensor:
    """A dense array with named axes. ``labels`` names coordinates per axis, where given."""

    name: str
    data: Any
    axes: tuple[str, ...] = ()
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    unit: str = ""
    title: str = ""
    item: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """A node: ``id`` unique in its graph, attributes JSON-like."""

    id: str
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge from ``source`` to ``target``, attributes JSON-like."""

    source: str
    target: str
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Graph:
    """A directed graph; parts append, as with :class:`Table`."""

    name: str
    nodes: Sequence[Node]
    edges: Sequence[Edge]
    title: str = ""
    item: str = ""
    last: bool = True


@dataclass(frozen=True, slots=True)
class Record:
    """Free-form JSON-like values: numbers, strings, booleans, ``None``, lists and mappings."""

    name: str
    values: Mapping[str, Any]
    title: str = ""
    item: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """``text[start:end]`` with a score."""

    start: int
    end: int
    score: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """Text with scored spans."""

    name: str
    text: str
    spans: Sequence[Span]
    title: str = ""
    item: str = ""


@dataclass(frozen=True, slots=True)
class ItemError:
    """One item of a request failed; the others are unharmed."""

    name: str
    error: LensdError
    item: str = ""
    title: str = ""


#: Anything an analyzer may yield.
Result = Table | Tensor | Graph | Record | Text | ItemError
