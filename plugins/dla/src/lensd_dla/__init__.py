"""Direct logit attribution for lensd."""

from lensd_api import Analyzer, hookimpl
from lensd_dla.analyzer import Dla
from lensd_dla.completeness import IncompleteDecomposition, NotFinite
from lensd_dla.params import DlaParams, Message

__version__ = "0.1.0"

__all__ = ["Dla", "DlaParams", "IncompleteDecomposition", "Message", "NotFinite", "lensd_analyzers"]


@hookimpl
def lensd_analyzers() -> list[Analyzer]:
    """The analyzer ``dla``."""
    return [Dla()]
