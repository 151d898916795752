"""Parameters of an analyzer: a pydantic class from which schema and validation follow.

Requests carry them as a ``google.protobuf.Struct``, whose numbers are all doubles; that an
integral one is an integer is settled here, once.
"""

import json
from collections.abc import Mapping
from typing import Any, Self, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from lensd_api.errors import FieldViolation, InvalidParams

#: Above this a double no longer holds every integer.
_EXACT = 2**53


class BaseParams(BaseModel):
    """Base of every ``Params`` class: unknown fields are refused, types are strict.

    ``5.0`` is a fine ``int``, as the wire knows only doubles; ``"5"`` is not. NaN and infinity
    are refused unless a field allows them.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Validates JSON-like ``values``. Raises InvalidParams with a violation per fault."""
        # JSON mode: strict, yet arrays may be tuples and strings enumeration members.
        try:
            return cls.model_validate_json(json.dumps(integral(values)))
        except ValidationError as error:
            violations = [
                FieldViolation(_path(fault["loc"]), _description(cast("dict[str, Any]", fault)))
                for fault in error.errors()
            ]
        summary = "; ".join(
            f"{v.field}: {v.description}" if v.field else v.description for v in violations[:3]
        )
        more = f" (and {len(violations) - 3} more)" if len(violations) > 3 else ""
        raise InvalidParams(f"invalid parameters: {summary}{more}", violations=violations)


def integral(value: Any) -> Any:
    """``value`` with integral floats below 2^53 as integers, in nested lists and mappings too."""
    match value:
        case float() if value.is_integer() and abs(value) < _EXACT:
            return int(value)
        case Mapping():
            return {str(k): integral(v) for k, v in cast("Mapping[str, Any]", value).items()}
        case list() | tuple():
            return [integral(v) for v in cast("list[Any]", value)]
        case _:
            return value


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _description(fault: Mapping[str, Any]) -> str:
    if fault["type"] == "extra_forbidden":
        return "no such parameter"
    return str(fault["msg"])
