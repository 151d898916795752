"""Which ``LENSD_*`` variables of the environment are meant for the daemon, and what is wrong with the others."""

import difflib
import re
from collections.abc import Iterator, Mapping

from pydantic import BaseModel

PREFIX = "LENSD_"
#: Which file to read, and what `lensctl` and other clients read in the same environment.
NOT_SETTINGS = frozenset(
    PREFIX + name for name in ("CONFIG", "TARGET", "ADMIN_TARGET", "TOKEN", "TOKEN_FILE", "CA", "CERT", "KEY")
)
#: Set by Kubernetes in every pod beside a Service whose name begins with lensd, as Docker once did for links.
_SERVICE_LINK = re.compile(
    PREFIX + r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")
#: From which likeness on a misspelt name suggests another.
_ALIKE = 0.6

#: Settings by the beginning of their variables, such as ``LIMITS`` and ``MODELS__NAME``.
Sections = Mapping[str, type[BaseModel]]


def problem_of(variable: str, value: str, sections: Sections) -> str:
    """What is wrong with a variable that names no setting; empty when nothing is. Keys are checked with all others."""
    name = variable.upper()
    if not name.startswith(PREFIX) or name in NOT_SETTINGS or _is_service_link(name, value):
        return ""
    known = {beginning.partition("__")[0].lower() for beginning in sections}
    section, nested, _ = name.removeprefix(PREFIX).lower().partition("__")
    if section in known:
        return ""
    if nested:
        return f"{variable}: there is no section {section!r}; sections are {', '.join(sorted(known))}"
    nearest = _nearest(name.removeprefix(PREFIX), sections)
    return (
        f"{variable}: no such setting; {f'did you mean {nearest}? ' if nearest else ''}"
        f"Settings are {PREFIX}SECTION__KEY, with two underscores between"
    )


def _is_service_link(name: str, value: str) -> bool:
    named_so = name.endswith("PORT") and _SERVICE_URL.match(value) is not None
    return named_so or _SERVICE_LINK.fullmatch(name) is not None


def _nearest(name: str, sections: Sections) -> str:
    """The variable that is spelt most like ``name``, with its section or without; nothing if none is like it."""

    def likeness(known: str) -> float:
        spellings = (known, known.rpartition("__")[2])
        return max(difflib.SequenceMatcher(None, name, spelling).ratio() for spelling in spellings)

    best = max(_variables(sections), key=likeness)
    return PREFIX + best if likeness(best) > _ALIKE else ""


def _variables(sections: Sections) -> Iterator[str]:
    """Names without their prefix."""
    yield "CONFIG"
    for beginning, model in sections.items():
        yield beginning.partition("__")[0]
        yield from (f"{beginning}__{key.upper()}" for key in model.model_fields)
