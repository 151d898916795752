"""Shopping sessions to try the rewards on: written for this package, no data of real shoppers.

Every session has a right answer first and then hard negatives: the neighbour of the right element, most
of the right words, a plausible other wish, an output that is not well-formed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, cast

_FILE = "sessions.jsonl"


@dataclass(frozen=True, slots=True)
class Answer:
    """An output and what it is an example of."""

    shows: str
    output: str


@dataclass(frozen=True, slots=True)
class Session:
    """One step of a shopping session: what the shopper saw, did, and what models might answer."""

    id: str
    context: str
    reference: Mapping[str, str]
    answers: tuple[Answer, ...]

    def items(self) -> list[dict[str, Any]]:
        """Its answers as items of a request, one group."""
        return [
            {
                "context": self.context,
                "output": answer.output,
                "reference": dict(self.reference),
                "group_id": self.id,
            }
            for answer in self.answers
        ]


def read_sessions() -> tuple[Session, ...]:
    """All of them, in order."""
    text = (resources.files("lensd_shop_r1") / _FILE).read_text(encoding="utf-8")
    return tuple(_session(cast("dict[str, Any]", json.loads(line))) for line in text.splitlines())


def _session(fields: dict[str, Any]) -> Session:
    answers = tuple(Answer(answer["shows"], answer["output"]) for answer in fields["outputs"])
    return Session(fields["id"], fields["context"], fields["reference"], answers)
