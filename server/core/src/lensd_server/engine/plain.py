"""JSON-like values of an analyzer as plain Python, with the bytes they take on the wire.

A record and an attribute know null, booleans, doubles, strings, lists and mappings with text keys,
as ``google.protobuf.Struct`` does. Whole numbers beyond 2^53, which a double would change silently,
are refused. The sizes are exact, so that what is too large is known before it is sent.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

#: Above this a double no longer holds every integer.
_EXACT = 2**53
#: Below protobuf's own limit of 100 messages, of which each level takes two or three.
_MAX_DEPTH = 32
#: Of a path that is shown: its keys may be of any length.
_SHOWN = 120


class Unsound(Exception):
    """A value cannot be carried; the message says where and why, and holds no value."""


class _Within(Exception):
    """What is wrong with a value within ``path``, which grows on the way out: only faults pay for paths."""

    def __init__(self, fault: str) -> None:
        self.fault, self.path = fault, ""


def plain(values: Mapping[Any, Any]) -> tuple[dict[str, Any], int]:
    """A copy of ``values``, NumPy and torch scalars and arrays as numbers and lists, and its bytes.

    Raises Unsound.
    """
    try:
        return _mapping(values, 0)
    except _Within as found:
        raise Unsound(f"{_shown(found.path.removeprefix('.')) or 'the values'} {found.fault}") from None


def text(value: object, what: str) -> str:
    """``value`` if it is text that UTF-8 can hold. Raises Unsound."""
    if not isinstance(value, str):
        raise Unsound(f"{what} is a {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unsound(f"{what} holds a lone surrogate, which UTF-8 cannot carry") from None
    return value


def field_bytes(content: int) -> int:
    """Bytes of a field of ``content`` bytes with its tag (below 16) and length."""
    return 1 + (max(content.bit_length(), 1) + 6) // 7 + content


def _mapping(values: Mapping[Any, Any], depth: int) -> tuple[dict[str, Any], int]:
    copied: dict[str, Any] = {}
    size = 0
    for key, value in values.items():
        name = str(key)
        try:
            named = field_bytes(len(name.encode()))
        except UnicodeEncodeError:
            raise _Within("has a key that holds a lone surrogate, which UTF-8 cannot carry") from None
        try:
            copied[name], length = _value(value, depth + 1)
        except _Within as found:
            found.path = f".{name}{found.path}"
            raise
        size += field_bytes(named + field_bytes(length))
    return copied, size


def _value(value: Any, depth: int) -> tuple[Any, int]:
    """A copy of ``value`` and the bytes of the message that holds it."""
    if depth > _MAX_DEPTH:
        raise _Within(f"is nested more than {_MAX_DEPTH} deep")
    match value:
        case None | bool():
            return value, 2
        case int():
            if abs(value) > _EXACT:
                raise _Within("is beyond 2^53, which a double cannot hold: send it as text")
            return value, 9
        case float():
            # NumPy's is a float too; NaN and infinities travel as null.
            return float(value), 9 if math.isfinite(value) else 2
        case str():
            try:
                return value, field_bytes(len(value.encode()))
            except UnicodeEncodeError:
                raise _Within("holds a lone surrogate, which UTF-8 cannot carry") from None
        case Mapping():
            copied, size = _mapping(cast("Mapping[Any, Any]", value), depth)
            return copied, field_bytes(size)
        case _ if hasattr(value, "tolist"):
            return _value(value.tolist(), depth)
        case list() | tuple() | set() | frozenset():
            return _members(cast("Iterable[Any]", value), depth)
        case _:
            raise _Within(f"is a {type(value).__name__}, which is not a JSON-like value")


def _members(values: Iterable[Any], depth: int) -> tuple[list[Any], int]:
    copied: list[Any] = []
    size = 0
    for member in values:
        try:
            own, length = _value(member, depth + 1)
        except _Within as found:
            found.path = f"[{len(copied)}]{found.path}"
            raise
        copied.append(own)
        size += field_bytes(length)
    return copied, field_bytes(size)


def _shown(path: str) -> str:
    return path if len(path) <= _SHOWN else path[:_SHOWN] + "…"
