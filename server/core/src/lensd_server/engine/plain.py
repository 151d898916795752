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


def plain(values: Mapping[Any, Any]) -> tuple[dict[str, Any], int]:
    """A copy of ``values``, NumPy and torch scalars and arrays as numbers and lists, and its bytes.

    Raises Unsound.
    """
    return _mapping(values, "", 0)


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


def _mapping(values: Mapping[Any, Any], path: str, depth: int) -> tuple[dict[str, Any], int]:
    copied: dict[str, Any] = {}
    size = 0
    for key, value in values.items():
        name = text(str(key), f"a key of {_shown(path) or 'the values'}")
        copied[name], length = _value(value, f"{path}.{name}" if path else name, depth + 1)
        size += field_bytes(field_bytes(len(name.encode())) + field_bytes(length))
    return copied, size


def _value(value: Any, path: str, depth: int) -> tuple[Any, int]:
    """A copy of ``value`` and the bytes of the message that holds it."""
    if depth > _MAX_DEPTH:
        raise Unsound(f"{_shown(path)} is nested more than {_MAX_DEPTH} deep")
    match value:
        case None | bool():
            return value, 2
        case int():
            if abs(value) > _EXACT:
                raise Unsound(f"{_shown(path)} is beyond 2^53, which a double cannot hold: send it as text")
            return value, 9
        case float():
            # NumPy's is a float too; NaN and infinities travel as null.
            return float(value), 9 if math.isfinite(value) else 2
        case str():
            return text(value, _shown(path)), field_bytes(len(value.encode()))
        case Mapping():
            copied, size = _mapping(cast("Mapping[Any, Any]", value), path, depth)
            return copied, field_bytes(size)
        case _ if hasattr(value, "tolist"):
            return _value(value.tolist(), path, depth)
        case list() | tuple() | set() | frozenset():
            members = [
                _value(member, f"{path}[{index}]", depth + 1)
                for index, member in enumerate(cast("Iterable[Any]", value))
            ]
            size = sum(field_bytes(length) for _, length in members)
            return [member for member, _ in members], field_bytes(size)
        case _:
            raise Unsound(f"{_shown(path)} is a {type(value).__name__}, which is not a JSON-like value")


def _shown(path: str) -> str:
    return path if len(path) <= _SHOWN else path[:_SHOWN] + "…"
