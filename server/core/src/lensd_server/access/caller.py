"""Who calls and what that allows."""

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """What a caller may do. None holds another: a token lists all it is for."""

    #: See what there is: analyzers, models, artifacts, load.
    READ = "read"
    #: Run analyses.
    ANALYZE = "analyze"
    #: Change what the server does: load, unload, cancel, delete, release; see who runs what.
    ADMIN = "admin"


ALL_SCOPES = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a call. ``name`` is empty where callers are not authenticated."""

    name: str
    scopes: frozenset[Scope]


#: Where the configuration asks nobody who they are.
ANYBODY = Caller("", ALL_SCOPES)
#: Whoever may open the server's Unix socket, which its owner alone may.
LOCAL = Caller("local", ALL_SCOPES)
