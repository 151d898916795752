"""Reads fenced blocks out of Markdown and compares shown output with real output."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FENCE = re.compile(r"^( *)```(\S*)[^\n]*\n(.*?)^\1```\s*$", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"[-+]?(?:\d+\.\d+|\d+)(?:[eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block; ``output`` is the ``text`` block that directly follows it, if any."""

    language: str
    text: str
    line: int
    output: str | None = None


def read_blocks(path: Path) -> list[Block]:
    """The blocks of a Markdown file in order, each with its output; output blocks are not listed."""
    source = path.read_text()
    found: list[Block] = []
    previous_end = -1
    for match in _FENCE.finditer(source):
        language, text = match[2], match[3]
        line = source.count("\n", 0, match.start()) + 1
        between = source[previous_end : match.start()] if previous_end >= 0 else "first"
        if language in ("text", "json") and not between.strip() and found:
            last = found.pop()
            found.append(Block(last.language, last.text, last.line, text))
        else:
            found.append(Block(language, text, line))
        previous_end = match.end()
    return found


def mismatch(expected: str, actual: str, *, relative: float = 1e-3, absolute: float = 1e-4) -> str | None:
    """Where ``actual`` is not what ``expected`` shows, or ``None``.

    Numbers may differ by the tolerances, white space does not count, and a line that is just
    ``...`` stands for any number of lines.
    """
    shown, real = _lines(expected), _lines(actual)
    at = 0
    for index, line in enumerate(shown):
        if line == "...":
            following = shown[index + 1] if index + 1 < len(shown) else None
            while at < len(real) and (
                following is None or not _same(following, real[at], relative, absolute)
            ):
                at += 1
            continue
        if at >= len(real):
            return f"shown {line!r}, but the output has ended"
        if not _same(line, real[at], relative, absolute):
            return f"shown {line!r}, real {real[at]!r}"
        at += 1
    return None if at == len(real) else f"not shown: {real[at]!r}"


def _lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def _same(shown: str, real: str, relative: float, absolute: float) -> bool:
    if _NUMBER.sub("#", shown) != _NUMBER.sub("#", real):
        return False
    pairs = zip(_NUMBER.findall(shown), _NUMBER.findall(real), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=relative, abs_tol=absolute) for a, b in pairs)


def json_mismatch(expected: str, actual: str) -> str | None:
    """Which shown JSON object is in no real one, or ``None``. Shown objects may leave members out."""
    real = list(_objects(actual))
    for shown in _objects(expected):
        if not any(_contains(shown, candidate) for candidate in real):
            return f"{json.dumps(shown)} is in none of {len(real)} objects: {actual[:2000]}"
    return None


def _objects(text: str) -> Iterator[Any]:
    decoder, at = json.JSONDecoder(), 0
    while (at := _skip_space(text, at)) < len(text):
        value, at = decoder.raw_decode(text, at)
        yield value


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _contains(shown: Any, real: Any) -> bool:
    match shown, real:
        case dict(), dict():
            return all(name in real and _contains(value, real[name]) for name, value in shown.items())
        case list(), list():
            return len(shown) == len(real) and all(map(_contains, shown, real))
        case (bool(), _) | (_, bool()):
            return shown is real
        case int() | float(), int() | float():
            return math.isclose(shown, real, rel_tol=1e-3, abs_tol=1e-4)
        case _:
            return shown == real
