"""The engine a conformance suite asks for, as a Protocol.

``lensd-server`` registers a pytest fixture ``lensd_engine`` that is one: the real engine with
tiny real models, so that an author tests against what will run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from lensd_api.analyzer import Analyzer
from lensd_api.errors import LensdError
from lensd_api.model import ModelCard
from lensd_api.results import Result

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Job:
    """One analysis to run. ``model`` is empty for analyzers that need none."""

    params: Mapping[str, Any]
    model: str = ""
    tensors: "Mapping[str, Tensor]" = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an analysis ended: ``error`` is ``None`` when it completed."""

    results: tuple[Result, ...]
    #: (reason, message) in order.
    warnings: tuple[tuple[str, str], ...] = ()
    error: LensdError | None = None
    #: Tokens it had run through the model.
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Residue:
    """What a cancelled analysis left behind; all zero and ``False`` when it is as it should be."""

    #: Forward hooks on any module of the model beyond those there before.
    hooks: int
    #: Leases on the model.
    leases: int
    #: Rows of the analysis that still wait.
    queued_rows: int
    #: Analyses that still run.
    running: int
    #: Whether any parameter or buffer of the model differs from before.
    model_changed: bool


class Engine(Protocol):
    """A running engine with models resident, driven synchronously."""

    @property
    def models(self) -> Sequence[str]:
        """Names of the resident models."""
        ...

    def card(self, model: str) -> ModelCard:
        """Sizes and tokenizer of a model."""
        ...

    def run(self, analyzer: Analyzer, job: Job) -> Outcome:
        """Runs one analysis to its end."""
        ...

    def run_together(self, analyzer: Analyzer, jobs: Sequence[Job]) -> list[Outcome]:
        """Starts all ``jobs`` at once, so that they share batches; outcomes in their order."""
        ...

    def run_and_cancel(self, analyzer: Analyzer, job: Job, *, after_results: int) -> Residue:
        """Cancels an analysis once it has yielded that many results, waits until it is over."""
        ...
