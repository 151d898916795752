"""JSON-like values to and from ``google.protobuf.Struct``.

Towards the caller NaN and infinities become null, since neither JSON nor Struct's own JSON mapping
can carry them; what a Struct cannot hold at all is refused by :mod:`lensd_server.engine.plain`.
"""

import math
from collections.abc import Mapping
from typing import Any, cast

from google.protobuf.struct_pb2 import ListValue, Struct, Value

from lensd_server.engine.plain import plain


def to_struct(values: Mapping[str, Any]) -> Struct:
    """``values`` as a Struct; NumPy and torch scalars and arrays become numbers and lists.

    Raises Unsound.
    """
    return pack_struct(plain(values)[0])


def pack_struct(values: Mapping[str, Any]) -> Struct:
    """The same of plain values, such as those of a result that has been checked."""
    struct = Struct()
    _fill_struct(struct, values)
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


def _fill_struct(struct: Struct, values: Mapping[str, Any]) -> None:
    # Reading an entry creates it; an empty mapping must be a struct all the same.
    struct.SetInParent()
    for key, value in values.items():
        _fill(struct.fields[key], value)


def _fill(target: Value, value: Any) -> None:
    match value:
        case bool():
            target.bool_value = value
        case int():
            target.number_value = value
        case float() if math.isfinite(value):
            target.number_value = value
        case str():
            target.string_value = value
        case dict():
            _fill_struct(target.struct_value, cast("dict[str, Any]", value))
        case list():
            _fill_list(target.list_value, cast("list[Any]", value))
        case _:
            target.null_value = 0  # pyright: ignore[reportAttributeAccessIssue]


def _fill_list(target: ListValue, values: list[Any]) -> None:
    target.SetInParent()
    for value in values:
        _fill(target.values.add(), value)
