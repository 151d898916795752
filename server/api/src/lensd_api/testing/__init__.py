"""What an analyzer author tests with."""

from lensd_api.testing.compare import BATCH_TOLERANCE, differences
from lensd_api.testing.conformance import AnalyzerConformance
from lensd_api.testing.engine import Engine, Job, Outcome, Residue

__all__ = ["BATCH_TOLERANCE", "AnalyzerConformance", "Engine", "Job", "Outcome", "Residue", "differences"]
