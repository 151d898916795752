"""Reads the members of a JSON object together with where their values stand in the text.

The rationale's tokens are found by the place of its raw value, which ``json.loads`` does not tell.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

_SPACE = re.compile(r"[ \t\n\r]*")


class NotAnObject(ValueError):
    """The text does not hold a JSON object at that place; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Member:
    """A decoded value, and the text[start:end] it was written as, quotes included."""

    value: Any
    start: int
    end: int


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def read_members(text: str, start: int) -> tuple[dict[str, Member], int]:
    """Members of the object whose brace is at ``start``, and where it ends.

    Of a key given twice the last one counts, as everywhere in JSON. Raises NotAnObject.
    """
    if text[start : start + 1] != "{":
        raise NotAnObject("it does not begin with '{'")
    try:
        return _members(text, skip_space(text, start + 1))
    except NotAnObject:
        raise
    except RecursionError:
        raise NotAnObject("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise NotAnObject(f"{error.msg} at character {error.pos}") from None
    except (ValueError, StopIteration) as error:  # NaN, or an integer of thousands of digits
        raise NotAnObject(str(error) or "a value is missing") from None


def skip_space(text: str, at: int) -> int:
    """The first place from ``at`` on that holds no JSON white space."""
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _members(text: str, at: int) -> tuple[dict[str, Member], int]:
    found: dict[str, Member] = {}
    if text[at : at + 1] == "}":
        return found, at + 1
    while True:
        if text[at : at + 1] != '"':
            raise NotAnObject(f"a key in double quotes is missing at character {at}")
        key, at = _DECODER.raw_decode(text, at)
        at = skip_space(text, at)
        if text[at : at + 1] != ":":
            raise NotAnObject(f"':' is missing at character {at}")
        begin = skip_space(text, at + 1)
        value, end = _DECODER.raw_decode(text, begin)
        found[key] = Member(value, begin, end)
        at = skip_space(text, end)
        if text[at : at + 1] == "}":
            return found, at + 1
        if text[at : at + 1] != ",":
            raise NotAnObject(f"',' or '}}' is missing at character {at}")
        at = skip_space(text, at + 1)
