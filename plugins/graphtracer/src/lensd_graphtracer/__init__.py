"""GraphTracer: failure attribution in multi-agent runs by information flow."""

from collections.abc import Sequence

from lensd_api import Analyzer, hookimpl
from lensd_graphtracer.analyzer import GraphTracer
from lensd_graphtracer.fault_analyzer import FaultInjection, FaultParams
from lensd_graphtracer.params import Edges, GraphTracerParams

__all__ = ["Edges", "FaultInjection", "FaultParams", "GraphTracer", "GraphTracerParams", "lensd_analyzers"]


@hookimpl
def lensd_analyzers() -> Sequence[Analyzer]:
    """Tells the server what this plugin offers."""
    return [GraphTracer(), FaultInjection()]
