"""What the reward functions for trainers share: rollouts as items of ``shop-r1``, and when to try again.

Trainers lay out prompts and completions in many ways; neither they nor torch are imported.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from lensd_client.errors import LensdError, ResourceExhausted, StreamError, Unavailable

#: Columns of ``rewards`` with a number of their own.
COMPONENTS = ("format", "type", "attribute", "value", "rationale", "total", "self_certainty")
#: First pause before trying again where the server does not say how long; doubled every time.
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0


def reward_item(prompt: Any, completion: Any, reference: Any) -> dict[str, Any]:
    """One item of the analyzer's parameter ``items``.

    Prompt and completion are texts or conversations, the reference an action as a mapping or its JSON.
    Raises TypeError for images, ValueError for a reference that is no JSON.
    """
    return {**_context(prompt), "output": text_of(completion), "reference": _action(reference)}


def text_of(completion: Any) -> str:
    """The text of a completion: itself, or of the last message of a conversation.

    Raises TypeError for anything else.
    """
    if isinstance(completion, str):
        return completion
    messages = cast("Sequence[Mapping[str, Any]]", completion)
    return _content(messages[-1].get("content")) if messages else ""


def _context(prompt: Any) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"context": prompt}
    messages = cast("Sequence[Mapping[str, Any]]", prompt)
    return {"messages": [{"role": m["role"], "content": _content(m.get("content"))} for m in messages]}


def _content(content: Any) -> str:
    """A message's text; TRL may lay it out as a list of parts. Raises TypeError for images."""
    if content is None:  # a message that only calls tools
        return ""
    if isinstance(content, str):
        return content
    parts = cast("Sequence[Mapping[str, Any]]", content)
    if wrong := [part.get("type") for part in parts if part.get("type") != "text"]:
        raise TypeError(f"shop-r1 scores text; a message has a part of type {wrong[0]!r}")
    return "".join(str(part["text"]) for part in parts)


def _action(reference: Any) -> dict[str, Any]:
    """A reference without the empty fields that a dataset with one schema for all rows has."""
    fields = json.loads(reference) if isinstance(reference, str) else reference
    return {key: value for key, value in cast("Mapping[str, Any]", fields).items() if value is not None}


def is_passing(error: LensdError) -> bool:
    """Whether trying again may help."""
    if isinstance(error, Unavailable | StreamError):
        return True
    return isinstance(error, ResourceExhausted) and error.retry_after_s is not None


def pause_s(refusal: LensdError, attempt: int) -> float:
    """Seconds to wait after ``refusal`` of the ``attempt``-th try, from 1."""
    own = _FIRST_PAUSE_S * 2 ** (attempt - 1)
    return min(_LONGEST_PAUSE_S, max(own, refusal.retry_after_s or 0.0))
