"""Plain Python values to and from ``google.protobuf.Struct``, whose numbers are all doubles."""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, cast

import numpy as np
from google.protobuf import struct_pb2

#: Above this a double no longer holds every integer.
_EXACT = 2**53


def to_struct(values: Mapping[str, Any], *, what: str = "params") -> struct_pb2.Struct:
    """``values`` as a Struct.

    Takes None, truth values, numbers (NumPy's too), text, lists, tuples, arrays and mappings.
    Raises TypeError for anything else and ValueError for an integer a double cannot hold; both
    name the place.
    """
    struct = struct_pb2.Struct()
    for key, value in values.items():
        struct.fields[key].CopyFrom(_to_value(value, f"{what}[{key!r}]"))
    return struct


def from_struct(struct: struct_pb2.Struct) -> dict[str, Any]:
    """The Struct as a dictionary, sorted by name; integral numbers become ``int``."""
    # A map has no order on the wire, and another one in every process: any is better than that.
    return {key: _from_value(value) for key, value in sorted(struct.fields.items())}


def _to_value(value: Any, place: str) -> struct_pb2.Value:
    match value:
        case None:
            return struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
        case bool() | np.bool_():
            return struct_pb2.Value(bool_value=bool(value))
        case str():
            return struct_pb2.Value(string_value=value)
        case Integral() if abs(int(value)) > _EXACT:
            raise ValueError(f"{place}: {int(value)} is beyond 2^53; numbers travel as doubles")
        case Integral() | Real():
            return struct_pb2.Value(number_value=float(value))
        case Mapping():
            mapping = cast("Mapping[str, Any]", value)
            return struct_pb2.Value(struct_value=to_struct(mapping, what=place))
        case list() | tuple() | np.ndarray():
            members = cast("list[Any]", value)
            values = [_to_value(member, f"{place}[{i}]") for i, member in enumerate(members)]
            return struct_pb2.Value(list_value=struct_pb2.ListValue(values=values))
        case _:
            raise TypeError(f"{place}: {type(value).__name__} cannot travel as JSON")


def _from_value(value: struct_pb2.Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) <= _EXACT else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return from_struct(value.struct_value)
        case "list_value":
            return [_from_value(member) for member in value.list_value.values]
        case _:
            return None
