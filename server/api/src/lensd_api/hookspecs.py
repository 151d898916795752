"""The hooks a plugin may implement, all optional.

A plugin is an installed distribution with an entry point in group ``lensd`` that names the
module holding its hook implementations. Hooks register things; results stream through
:meth:`lensd_api.Analyzer.analyze`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pluggy

from lensd_api.analyzer import Analyzer

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

#: pluggy project name and entry-point group.
PROJECT = "lensd"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class ModelSource(Protocol):
    """Turns the part of a URI after ``scheme:`` into a folder transformers can read."""

    @property
    def scheme(self) -> str:
        """The URI scheme it answers to."""
        ...

    def fetch(self, location: str, cache: Path) -> Path:
        """A folder with config, safetensors weights and tokenizer, or one GGUF file.

        Runs on a loading thread and may take long. ``cache`` is a folder of the server's.
        """
        ...


@dataclass(frozen=True, slots=True)
class AnalysisRecord:
    """What observers are told of an analysis. ``outcome`` and ``seconds`` are set at its end.

    ``caller`` is who asked: an identity, else an address; empty when nobody knows.
    """

    request_id: str
    analyzer: str
    model: str
    outcome: str = ""
    seconds: float = 0.0
    usage: Mapping[str, float] | None = None
    caller: str = ""


@hookspec
def lensd_analyzers() -> Sequence[Analyzer]:  # pyright: ignore[reportReturnType]
    """Analyzers this plugin offers."""


@hookspec
def lensd_model_sources() -> Sequence[ModelSource]:  # pyright: ignore[reportReturnType]
    """URI schemes this plugin can load models from."""


@hookspec
def lensd_analysis_started(analysis: AnalysisRecord) -> None:
    """An analysis was admitted. Must return at once."""


@hookspec
def lensd_analysis_finished(analysis: AnalysisRecord) -> None:
    """An analysis ended, however it did. Must return at once."""


@hookspec
def lensd_metrics() -> "Sequence[Collector]":  # pyright: ignore[reportReturnType]
    """Prometheus collectors of this plugin; names must begin with ``lensd_plugin_``."""
