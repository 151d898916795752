"""The Hyperdimensional Probe for lensd: fit named concepts onto a model's state, then read them."""

from lensd_api import Analyzer, hookimpl
from lensd_vsa_probe.fit import VsaFit
from lensd_vsa_probe.params import FitParams, ProbeParams
from lensd_vsa_probe.probe import VsaProbe

__version__ = "0.1.0"

__all__ = ["FitParams", "ProbeParams", "VsaFit", "VsaProbe", "lensd_analyzers"]


@hookimpl
def lensd_analyzers() -> list[Analyzer]:
    """The analyzers ``vsa-fit`` and ``vsa-probe``."""
    return [VsaFit(), VsaProbe()]
