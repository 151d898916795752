"""What a text could have taken from another, or given to it: numbers, URLs, quotes, names, rare phrases.

A term is a key that two texts share when one repeats the other, with its place in the text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

#: A step is read up to this many characters at its start and this many at its end.
HEAD_CHARS, TAIL_CHARS = 24_000, 8_000
#: Words of a phrase.
_PHRASE = 4
#: Quotes and names of more characters are left to phrases.
_LONGEST = 100

_URL = re.compile(r"https?://[^\s<>\"'`)\]}]+")
_NUMBER = re.compile(r"(?<![\w.,])[$€£]?(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(%?)(?![\w])")
_QUOTE = re.compile(
    r"\"([^\"\n]{3,100})\"|“([^”\n]{3,100})”|'([^'\n]{4,100})'|`([^`\n]{3,100})`|\*\*([^*\n]{3,100})\*\*"
)
_NAME = re.compile(
    r"(?:[A-Z][\w’'-]*[^\W\d_]|[A-Z]\.)(?:[ ](?:(?:of|the|de|la|van|von|and)[ ])?(?:[A-Z][\w’'-]*|[A-Z]\.|\d{1,4}(?![\d.])))+"
)
_IDENTIFIER = re.compile(r"\b[A-Za-z]\w*(?:_\w+|[a-z][A-Z]\w+)\b")
_WORD = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*")


class Sort(StrEnum):
    """Of what sort a term is."""

    NUMBER = "number"
    URL = "url"
    QUOTE = "quote"
    NAME = "name"
    IDENTIFIER = "identifier"
    PHRASE = "phrase"


@dataclass(frozen=True, slots=True)
class Term:
    """A key two texts may share, and where it stands in this one."""

    key: str
    sort: Sort
    start: int
    end: int


def find_terms(text: str) -> list[Term]:
    """Terms of ``text`` in order of sort and place, each key once. Time is linear in what is read."""
    found: dict[str, Term] = {}
    for start, part in _read(text):
        for term in _terms(part):
            if term.key not in found:
                found[term.key] = Term(term.key, term.sort, term.start + start, term.end + start)
    return list(found.values())


def is_cut(text: str) -> bool:
    """Whether the middle of ``text`` is not read."""
    return len(text) > HEAD_CHARS + TAIL_CHARS


def _read(text: str) -> Iterator[tuple[int, str]]:
    if not is_cut(text):
        yield 0, text
        return
    yield 0, text[:HEAD_CHARS]
    yield len(text) - TAIL_CHARS, text[-TAIL_CHARS:]


def _terms(text: str) -> Iterator[Term]:
    for m in _URL.finditer(text):
        url = m[0].rstrip(".,;:!?")
        yield Term(
            f"u:{url.split('://', 1)[1].rstrip('/').lower()}", Sort.URL, m.start(), m.start() + len(url)
        )
    for m in _NUMBER.finditer(text):
        if (value := normal_number(m)) is not None:
            yield Term(f"n:{value}", Sort.NUMBER, m.start(), m.end())
    for m in _QUOTE.finditer(text):
        inner = m.lastindex or 0
        words = " ".join(_WORD.findall(m[inner].lower()))
        if len(words) >= 3:
            yield Term(f"w:{words}", Sort.QUOTE, m.start(inner), m.end(inner))
    for m in _NAME.finditer(text):
        if len(m[0]) <= _LONGEST:
            yield Term(f"w:{' '.join(_WORD.findall(m[0].lower()))}", Sort.NAME, m.start(), m.end())
    for m in _IDENTIFIER.finditer(text):
        yield Term(f"i:{m[0]}", Sort.IDENTIFIER, m.start(), m.end())
    words = list(_WORD.finditer(text))
    lower = [m[0].lower() for m in words]
    for i in range(len(words) - _PHRASE + 1):
        yield Term(
            f"p:{' '.join(lower[i : i + _PHRASE])}",
            Sort.PHRASE,
            words[i].start(),
            words[i + _PHRASE - 1].end(),
        )


def normal_number(found: "re.Match[str]") -> str | None:
    """``"1,250.50"`` as ``"1250.5"``; ``None`` for small counts, which everything shares."""
    whole, fraction = found[1].replace(",", "").lstrip("0") or "0", (found[2] or "").rstrip("0").rstrip(".")
    if not fraction and len(whole) < 2:
        return None
    return whole + fraction


def words_of(text: str) -> list[str]:
    """Lower-case words, for comparing claims and answers."""
    return [m[0].lower() for m in _WORD.finditer(text)]
