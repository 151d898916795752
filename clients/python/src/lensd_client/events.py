"""The events of a running analysis, as a caller sees them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lensd_client.errors import LensdError
from lensd_client.results import Graph, Table, Value

#: Where a model is in its life; empty when no model is involved.
ModelState = Literal["", "cold", "loading", "resident", "draining", "failed"]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The analysis was admitted. Always first.

    ``model_revision`` is empty until the model is resident; ``queue_position`` counts the
    analyses of this model that are ahead.
    """

    analyzer: str
    analyzer_version: str = ""
    distribution: str = ""
    model: str = ""
    model_state: ModelState = ""
    model_revision: str = ""
    queue_position: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the analysis has come; ``total`` is 0 when it is not known.

    ``detail``, for people, is what it waits for, such as other analyses that hold memory its model needs.
    """

    stage: str
    done: float
    total: float = 0.0
    unit: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class PartEvent:
    """Some rows, nodes or edges of a result that comes in several parts, as they arrive.

    Only results of several parts have these; the whole follows as :class:`ResultEvent`.
    """

    name: str
    item: str
    part: int
    value: Table | Graph


@dataclass(frozen=True, slots=True)
class ResultEvent:
    """A complete result, its parts joined. ``value`` is an error when this item failed."""

    name: str
    item: str
    value: Value | LensdError
    title: str = ""


@dataclass(frozen=True, slots=True)
class Warned:
    """Something to know about the results; ``item`` is empty when it concerns all of them."""

    reason: str
    message: str
    item: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """What an analysis took: seconds, rows and tokens without padding, bytes."""

    queue_s: float = 0.0
    forward_s: float = 0.0
    compute_s: float = 0.0
    total_s: float = 0.0
    rows: int = 0
    tokens: int = 0
    shared_rows: int = 0
    peak_capture_bytes: int = 0
    largest_batch: int = 0
    reused_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Completed:
    """The analysis is done and everything it sent has arrived. Always last.

    ``checksums`` holds the SHA-256 of every tensor by (name, item), checked already.
    """

    events: int
    results: int
    warnings: int = 0
    model_revision: str = ""
    usage: Usage = field(default_factory=Usage)
    checksums: Mapping[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])


Event = Accepted | Progress | PartEvent | ResultEvent | Warned | Completed
