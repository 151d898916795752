"""What an examination finds."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """``NOTE`` is worth knowing and breaks nothing."""

    FINE = "fine"
    NOTE = "note"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``mend`` says what to do; ``command`` does it."""

    what: str
    verdict: Verdict
    text: str
    mend: str = ""
    command: tuple[str, ...] = ()
