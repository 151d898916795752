"""Parameters of fits that take a second on a tiny model."""

from typing import Any

from lensd_vsa_probe.facts import analogies

ROWS = analogies("young")[:40]


def small(**changes: Any) -> dict[str, Any]:
    """A fit of forty rows; ``changes`` override."""
    return {
        "artifact": "small",
        "analogies": [list(row) for row in ROWS],
        "dim": 128,
        "epochs": 3,
        "batch": 16,
        "evaluation": "basic",
    } | changes
