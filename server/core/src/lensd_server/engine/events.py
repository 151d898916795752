"""What crosses the executor seam: a request goes in, events come out.

Plain values, no protobuf: the RPC layer turns them into messages, and a later executor on
another machine can send them as they are.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from lensd_api import Analyzer, Anatomy
from lensd_api.results import Result

if TYPE_CHECKING:
    from torch import Tensor

    from lensd_server.engine.columns import Column
    from lensd_server.engine.dense import Dense


class ModelState(StrEnum):
    """Where a model is in its life."""

    COLD = "cold"
    LOADING = "loading"
    RESIDENT = "resident"
    DRAINING = "draining"
    FAILED = "failed"


class Priority(StrEnum):
    """How urgent an analysis is."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One replica of a model. ``device`` is empty while none is chosen, ``problem`` says why it is not there."""

    state: ModelState
    device: str = ""
    leases: int = 0
    problem: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A configured model as an operator sees it: the state of its best replica, sizes and leases of all
    together. Sizes are zero until one is resident."""

    name: str
    source: str
    state: ModelState
    revision: str = ""
    device: str = ""
    dtype: str = ""
    resident_bytes: int = 0
    #: Set aside on its devices: weights, what forwards need beside them, and keys and values.
    reserved_bytes: int = 0
    parameters: int = 0
    leases: int = 0
    #: Analyses that wait for it to be loaded.
    waiting: int = 0
    pinned: bool = False
    problem: str = ""
    #: While it loads or drains: what it waits for.
    detail: str = ""
    anatomy: Anatomy | None = None
    queued_rows: int = 0
    queued_tokens: int = 0
    #: As many as are configured, whether they are in memory or not.
    replicas: tuple[ReplicaStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadStep:
    """How far a load has come: ``fraction`` from 0 to 1 over all stages.

    ``detail`` says what is waited for in the stages ``wait_memory`` and ``wait_turn``.
    """

    status: ModelStatus
    stage: str
    fraction: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """One device, in bytes: what models may have, what is set aside for them, what is in use.

    ``budget`` is ``None`` for no bound.
    """

    device: str
    budget: int | None
    reserved: int
    used: int


def caller_of(identity: str, peer: str) -> str:
    """Who a caller is to limits and turns: its identity, else its host, without the port of one connection."""
    return identity or peer.rpartition(":")[0] or peer


@dataclass(frozen=True, slots=True)
class AnalysisRequest:
    """One analysis to run, after the wire checks and before the analyzer's own.

    ``model`` is empty when the caller named none. ``deadline`` is on ``time.monotonic()``.
    """

    request_id: str
    analyzer: str
    model: str = ""
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tensors: "Mapping[str, Tensor]" = field(default_factory=dict[str, Any])
    priority: Priority = Priority.INTERACTIVE
    deadline: float | None = None
    #: The address it came from.
    peer: str = ""
    #: Who sent it, where callers are authenticated: the name of a token or of a certificate.
    identity: str = ""

    @property
    def caller(self) -> str:
        """Whose share of the server it uses: its identity, else its host; empty when nobody knows."""
        return caller_of(self.identity, self.peer)


@dataclass(frozen=True, slots=True)
class Accepted:
    """The analysis passed validation and admission. Always first."""

    analyzer: str
    analyzer_version: str
    distribution: str
    model: str
    model_state: ModelState | None
    model_revision: str
    queue_position: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it has come; ``total`` 0 when not known. ``detail``, for people: what it waits for."""

    stage: str
    done: float
    total: float
    unit: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """The analyzer yielded a result, which has been checked; ``size_bytes`` is about what it occupies.
    ``columns`` of a table and the elements of a tensor, ``dense``, are as the check has read them."""

    result: Result
    size_bytes: int = 0
    columns: "tuple[Column, ...]" = ()
    dense: "Dense | None" = None


@dataclass(frozen=True, slots=True)
class Warned:
    """The analyzer or the engine has something to say about the results."""

    reason: str
    message: str
    item: str = ""


@dataclass(slots=True)
class Usage:
    """What an analysis took so far; the engine adds to it, ``Completed`` carries it."""

    queue_s: float = 0.0
    forward_s: float = 0.0
    compute_s: float = 0.0
    total_s: float = 0.0
    rows: int = 0
    tokens: int = 0
    shared_rows: int = 0
    peak_capture_bytes: int = 0
    largest_batch: int = 0
    #: Of ``tokens``, those that another row's forward answered.
    reused_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Completed:
    """The analysis is done. Always last."""

    model_revision: str
    usage: Usage


AnalysisEvent = Accepted | Progress | Found | Warned | Completed


class Executor(Protocol):
    """The seam to other machines: one method."""

    def run(self, request: AnalysisRequest) -> AsyncIterator[AnalysisEvent]:
        """Streams the events of one analysis: Accepted first, Completed last.

        Failures are raised as LensdError, before or after events. Closing the iterator, or
        cancelling the task that reads it, cancels the analysis and leaves nothing behind.
        """
        ...


@dataclass(frozen=True, slots=True)
class RegisteredAnalyzer:
    """An analyzer and where it came from."""

    analyzer: Analyzer
    #: The name it answers to, bare or qualified.
    name: str
    distribution: str
    version: str

    @property
    def qualified_name(self) -> str:
        """``distribution:name``, always unambiguous."""
        return f"{self.distribution}:{self.analyzer.name}"


class AnalyzerLookup(Protocol):
    """Finds analyzers by name."""

    def resolve(self, name: str) -> RegisteredAnalyzer:
        """Raises UnknownAnalyzer, whose message says which names would answer."""
        ...
