"""Evidence of error in the words of a step, each with the span that shows it.

These are readings of language, not of any one framework; none looks at who speaks.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Signal(StrEnum):
    """What a step's words can show."""

    CRASH = "crash"
    MISSING = "missing"
    EMPTY_RESULT = "empty result"
    REFUSAL = "refusal"
    ASSUMPTION = "assumption"
    CONFIRMATION = "confirmation"
    DEFERRAL = "deferral"
    DOUBT = "doubt"
    STALL = "stall"
    IDLE = "idle"
    CODE = "code"
    CONCLUSION = "conclusion"
    GIVING_UP = "giving up"


_PATTERNS: Mapping[Signal, "re.Pattern[str]"] = {
    Signal.CRASH: re.compile(
        r"Traceback \(most recent call last\)|exit ?code: ?(?!0\b)-?\d+|execution failed|\b[A-Z]\w*(?:Error|Exception)\b"
        r"|command not found|\b(?:HTTP )?(?:403|404|429|500|502|503)\b (?:Forbidden|Not Found|Client|Server|error)|[Tt]imed? ?out|segmentation fault"
    ),
    Signal.MISSING: re.compile(
        r"(?i)\b(?:not found|no results?|no (?:relevant|specific|direct|explicit|such|matching)\b|could(?: not|n['’]t)|can(?:not|['’]t)|"
        r"unable to|failed to|did(?: not|n['’]t) (?:find|return|yield|provide|contain|produce|include)|"
        r"does(?: not|n['’]t) (?:contain|provide|include|exist|seem|appear|match|specify)|not available|unavailable|missing)\b"
    ),
    Signal.EMPTY_RESULT: re.compile(
        r"(?i)(?:code output|output|result|returned)s?: *(?:\[\]|\{\}|none|null|nan|empty|\"\"|)\s*$"
    ),
    Signal.REFUSAL: re.compile(
        r"(?i)\b(?:please (?:provide|share|upload|supply|confirm if)|could you (?:please )?(?:provide|share|confirm)|"
        r"I (?:am|'m) (?:sorry|unable|not able)|as an AI|I don['’]t have (?:access|the ability))"
    ),
    Signal.ASSUMPTION: re.compile(
        r"(?i)\b(?:assum(?:e|es|ed|ing|ption|ptions)|simulat\w+|hypothetical\w*|placeholder\w*|dummy|mock\w*|for example purposes|"
        r"sample data|example (?:data|output|video|path|url)|general(?:ly)? (?:knowledge|speaking)|from memory|typical(?:ly)?|"
        r"estimat\w+|approximat\w+|likely|presumably|(?:manual(?:ly)?) (?:check|verif|review|identif|search|inspect)\w*|your_api_key)\b|YOUR_API_KEY"
    ),
    Signal.CONFIRMATION: re.compile(
        r"(?i)\b(?:verified|confirm(?:ed|s)?|I agree|agreed|(?:is|are|appears?|seems?) (?:to be )?(?:correct|accurate|consistent|valid)|double-checked|aligns?)\b"
    ),
    Signal.DEFERRAL: re.compile(
        r"(?i)(?:hold on|one moment|I will (?:now |then )?(?:start|begin|proceed|look|search|gather|check|find|perform|verify|use)|"
        r"let['’]?s (?:start|begin|proceed)|next,? (?:I|we|let))"
    ),
    Signal.DOUBT: re.compile(
        r"(?i)\b(?:it (?:seems|appears|looks)(?: like| that)?|there (?:was|is|seems to be|might be) (?:an?|some) (?:error|issue|problem|mistake|discrepanc\w+|misunderstanding)|"
        r"incorrect\w*|wrong(?:ly)?|mistake\w*|apologi[sz]e|miscalculat\w+|discrepanc\w+|irrelevant|unrelated|fix the|correct(?:ed)? (?:the|this|code|script|version))\b"
    ),
    Signal.STALL: re.compile(
        r"(?is)stalled|(?:in a loop|\"is_in_loop\"[^}]*\"answer\": *true)|\"is_progress_being_made\"[^}]*\"answer\": *false|no progress|"
        r"(?:same|repeated(?:ly)?) (?:action|actions|result|results|request|step|steps)\b"
    ),
    Signal.IDLE: re.compile(
        r"(?i)^\s*(?:terminate|next speaker \S+|there is no code from the last \d+ messages? for me to execute\b.*|exitcode: 0 \(execution succeeded\)\s*code output:\s*)\s*$",
        re.DOTALL,
    ),
    Signal.CODE: re.compile(r"```"),
    Signal.CONCLUSION: re.compile(
        r"(?i)\b(?:final answer|the answer is|in conclusion|therefore|thus,|conclude[sd]?|the (?:result|total|final result) is|summary|terminate)\b"
    ),
    Signal.GIVING_UP: re.compile(
        r"(?i)\b(?:replanning|max (?:rounds|time)|terminate|no agent selected|giving up)\b"
    ),
}


@dataclass(frozen=True, slots=True)
class Sign:
    """A signal in a text: how often, and where first."""

    signal: Signal
    count: int
    start: int
    end: int


#: Longer texts are looked at this far.
_READ_CHARS = 32_000
#: Matches counted of one signal.
_MOST = 20


def find_signs(text: str) -> dict[Signal, Sign]:
    """Signals in ``text``; time is linear in what is read of it."""
    read = text[:_READ_CHARS]
    found: dict[Signal, Sign] = {}
    for signal, pattern in _PATTERNS.items():
        count, first = 0, None
        for match in pattern.finditer(read):
            first = first or match
            count += 1
            if count == _MOST:
                break
        if first is not None:
            found[signal] = Sign(signal, count, first.start(), first.end())
    return found
