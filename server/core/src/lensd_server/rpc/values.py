"""JSON-like values to and from ``google.protobuf.Struct``.

A Struct knows null, booleans, doubles, strings, lists and mappings with text keys. Towards
the caller NaN and infinities become null, since neither JSON nor Struct's own JSON mapping can
carry them, and whole numbers beyond 2^53, which a double would change silently, are refused.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

from google.protobuf.struct_pb2 import ListValue, Struct, Value

#: Above this a double no longer holds every integer.
_EXACT = 2**53
#: Below protobuf's own limit of 100 messages, of which each level takes two or three.
_MAX_DEPTH = 32


class InvalidValue(Exception):
    """A value of an analyzer's result cannot be carried; the message says which and why."""


def to_struct(values: Mapping[str, Any]) -> Struct:
    """``values`` as a Struct; NumPy and torch scalars and arrays become numbers and lists."""
    struct = Struct()
    _fill_struct(struct, values, "", 0)
    return struct


def from_struct(struct: Struct) -> dict[str, Any]:
    """A request's Struct as plain values; numbers stay doubles, NaN included."""
    return {key: _plain(value) for key, value in struct.fields.items()}


def _plain(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            return value.number_value
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return from_struct(value.struct_value)
        case "list_value":
            return [_plain(v) for v in value.list_value.values]
        case _:
            return None


def _fill_struct(struct: Struct, values: Mapping[str, Any], path: str, depth: int) -> None:
    # Reading an entry creates it; an empty mapping must be a struct all the same.
    struct.SetInParent()
    for key, value in values.items():
        _fill(struct.fields[str(key)], value, f"{path}.{key}" if path else str(key), depth + 1)


def _fill(target: Value, value: Any, path: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise InvalidValue(f"{path} is nested more than {_MAX_DEPTH} deep")
    match value:
        case None:
            target.null_value = 0  # pyright: ignore[reportAttributeAccessIssue]
        case bool():
            target.bool_value = value
        case int():
            if abs(value) > _EXACT:
                raise InvalidValue(
                    f"{path}: {value} is beyond 2^53, which a double cannot hold: send it as text"
                )
            target.number_value = value
        case float():
            if math.isfinite(value):
                target.number_value = value
            else:
                target.null_value = 0  # pyright: ignore[reportAttributeAccessIssue]
        case str():
            target.string_value = value
        case Mapping():
            _fill_struct(target.struct_value, cast("Mapping[str, Any]", value), path, depth)
        case _ if hasattr(value, "tolist"):
            _fill(target, value.tolist(), path, depth)
        case list() | tuple() | set() | frozenset():
            _fill_list(target.list_value, cast("Iterable[Any]", value), path, depth)
        case _:
            raise InvalidValue(f"{path}: a {type(value).__name__} is not a JSON-like value")


def _fill_list(target: ListValue, values: Iterable[Any], path: str, depth: int) -> None:
    target.SetInParent()
    for index, value in enumerate(values):
        _fill(target.values.add(), value, f"{path}[{index}]", depth + 1)
