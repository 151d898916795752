"""Requests that run as they are, from the sessions of this package."""

from typing import Any

from lensd_api import Example
from lensd_shop_r1.sessions import Session, read_sessions


def _examples() -> tuple[Example, ...]:
    sessions = {session.id: session for session in read_sessions()}
    certain: dict[str, Any] = {
        "items": [_first(sessions["kettle-cart"])],
        "token_certainty": True,
    }
    return (
        Example(
            "a-group-of-rollouts",
            "four rollouts of one prompt, every component of their rewards",
            {"items": sessions["kettle-search"].items()},
        ),
        Example("certainty-by-token", "which words of a rationale the model is sure of", certain),
        Example(
            "fenced-output",
            "an output in a code fence, tolerated because asked for; no model needed",
            {
                "items": [sessions["kettle-filter"].items()[-1]],
                "parse": "lenient",
                "self_certainty": "off",
            },
        ),
    )


def _first(session: Session) -> dict[str, Any]:
    item = session.items()[0]
    del item["group_id"]
    return item


EXAMPLES = _examples()
