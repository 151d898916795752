"""Reading untrusted JSON: every fault becomes a violation that names its place."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from lensd_api import InvalidParams

#: JSON as it arrives.
Json = Any

BAD_TRACE = "BAD_TRACE"
UNKNOWN_FORMAT = "UNKNOWN_TRACE_FORMAT"


def refuse(path: str, description: str) -> InvalidParams:
    """The error for one faulty place of the trace."""
    return InvalidParams.field(path, description, reason=BAD_TRACE)


def as_object(value: Json, path: str) -> Mapping[str, Json]:
    """``value`` as an object."""
    if not isinstance(value, Mapping):
        raise refuse(path, f"must be an object, not {kind(value)}")
    return cast("Mapping[str, Json]", value)


def as_list(value: Json, path: str) -> Sequence[Json]:
    """``value`` as an array."""
    if not isinstance(value, list | tuple):
        raise refuse(path, f"must be an array, not {kind(value)}")
    return cast("Sequence[Json]", value)


def as_text(value: Json, path: str) -> str:
    """``value`` as text; ``null`` is empty."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise refuse(path, f"must be text, not {kind(value)}")
    return value


def as_answer(value: Json, path: str) -> str | None:
    """An answer: text, or a number written as one; ``None`` when absent or empty."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise refuse(path, f"must be text or a number, not {kind(value)}")
    return str(value).strip() or None


def kind(value: Json) -> str:
    """What JSON calls ``value``."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case Mapping():
            return "an object"
        case _:
            return "an array"
