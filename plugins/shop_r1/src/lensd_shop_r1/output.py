"""What a model's output says: a rationale and an action, or why it says neither.

One JSON object ``{"rationale": string, "action": {"type": string, ...}}``. Keys in any order, white
space and further keys do not matter.
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

from lensd_shop_r1.members import Member, NotAnObject, read_members, skip_space

ParseMode = Literal["strict", "lenient"]

#: Opening braces tried in lenient mode: reading an output of any length takes bounded time.
MAX_STARTS = 32


@dataclass(frozen=True, slots=True)
class Predicted:
    """An action as written: ``type`` may be none of the three, a field not given is empty."""

    type: str
    name: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """A well-formed output; its rationale is written as ``text[start:end]``, quotes excluded."""

    action: Predicted
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Malformed:
    """An output that earns no format reward; ``problem`` says why, without quoting it."""

    problem: str


def read_output(text: str, mode: ParseMode) -> Output | Malformed:
    """Reads ``text``.

    Strict: the object is all there is but white space. Lenient: prose or a code fence may stand
    around it; of the first :data:`MAX_STARTS` opening braces the first that begins such an object counts.
    """
    if mode == "strict":
        return _strict(text)
    problem = "no '{' in it"
    at = text.find("{")
    for _ in range(MAX_STARTS):
        if at < 0:
            break
        try:
            members, _ = read_members(text, at)
            found = _shaped(members)
        except NotAnObject as error:
            found = Malformed(f"not JSON: {error}")
        if isinstance(found, Output):
            return found
        problem = found.problem
        at = text.find("{", at + 1)
    return Malformed(problem)


def _strict(text: str) -> Output | Malformed:
    try:
        members, end = read_members(text, skip_space(text, 0))
    except NotAnObject as error:
        return Malformed(f"not JSON: {error}")
    if (rest := skip_space(text, end)) < len(text):
        return Malformed(f"not JSON: something follows the object at character {rest}")
    return _shaped(members)


def _shaped(members: dict[str, Member]) -> Output | Malformed:
    for key in ("rationale", "action"):
        if key not in members:
            return Malformed(f"no {key!r}")
    rationale, action = members["rationale"], members["action"].value
    if not isinstance(rationale.value, str):
        return Malformed("'rationale' is not a string")
    if not isinstance(action, dict):
        return Malformed("'action' is not an object")
    predicted = _predicted(cast("dict[str, Any]", action))
    if isinstance(predicted, Malformed):
        return predicted
    return Output(predicted, rationale.start + 1, rationale.end - 1)


def _predicted(action: dict[str, Any]) -> Predicted | Malformed:
    if "type" not in action:
        return Malformed("no 'type' in 'action'")
    fields = {key: action.get(key) for key in ("type", "name", "text")}
    for key, value in fields.items():
        # A field may be null where the action has none; a type may not.
        if not isinstance(value, str) and not (value is None and key != "type"):
            return Malformed(f"'{key}' of 'action' is not a string")
    return Predicted(**{key: value or "" for key, value in fields.items()})
