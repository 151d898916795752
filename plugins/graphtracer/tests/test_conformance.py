"""The suite every analyzer passes, on the real engine with tiny real models."""

from lensd_api.testing import AnalyzerConformance
from lensd_graphtracer import FaultInjection, GraphTracer


class TestGraphTracer(AnalyzerConformance):
    analyzer = GraphTracer()
    # BLAS may pick other kernels for other batch sizes, and flows are differences of likelihoods.
    tolerance = 1e-4


class TestFaultInjection(AnalyzerConformance):
    analyzer = FaultInjection()
