"""Logs in, traces out: one adapter a format, and a refusal that says what each one needs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from lensd_api import FieldViolation, InvalidParams, TooLarge
from lensd_graphtracer.formats import openai_messages, otel_spans, plain, who_and_when
from lensd_graphtracer.formats.fields import UNKNOWN_FORMAT, Json, kind, refuse
from lensd_graphtracer.trace import Trace

#: More steps than this are refused.
MAX_STEPS = 20_000


@dataclass(frozen=True, slots=True)
class Format:
    """An adapter: how to recognise a log, how to read it, what it needs in words."""

    name: str
    matches: Callable[[Json], bool]
    read: Callable[[Json], Trace]
    needs: str


FORMATS = (
    Format("plain", plain.matches, plain.read, plain.NEEDS),
    Format("who_and_when", who_and_when.matches, who_and_when.read, who_and_when.NEEDS),
    Format("openai", openai_messages.matches, openai_messages.read, openai_messages.NEEDS),
    Format("otel", otel_spans.matches, otel_spans.read, otel_spans.NEEDS),
)


def read_trace(value: Json, name: str = "auto") -> Trace:
    """The trace of ``value`` in the format called ``name``, or in the only one it matches.

    Raises InvalidParams (``UNKNOWN_TRACE_FORMAT``, ``BAD_TRACE``) and TooLarge.
    """
    if name != "auto":
        chosen = next(f for f in FORMATS if f.name == name)
    else:
        fitting = [f for f in FORMATS if f.matches(value)]
        if len(fitting) != 1:
            raise _unrecognised(value, fitting)
        chosen = fitting[0]
    trace = chosen.read(value)
    if len(trace.steps) > MAX_STEPS:
        raise TooLarge(
            f"the log has {len(trace.steps)} steps; at most {MAX_STEPS} are analysed, send a part of it"
        )
    if not trace.content_steps:
        raise refuse(
            "trace", f"none of its {len(trace.steps)} steps says anything: there is nothing to attribute"
        )
    return trace


def _unrecognised(value: Json, fitting: list[Format]) -> InvalidParams:
    if fitting:
        found = f"fits several formats ({', '.join(f.name for f in fitting)}): set format"
    else:
        found = f"no known format: found {_seen(value)}; known are " + "; ".join(
            f"{f.name}: {f.needs}" for f in FORMATS
        )
    return InvalidParams(
        f"trace: {found}", violations=[FieldViolation("trace", found)], reason=UNKNOWN_FORMAT
    )


def _seen(value: Json) -> str:
    if isinstance(value, Mapping):
        names = [str(name)[:40] for name in cast("Mapping[str, Json]", value)]
        return f"an object with {', '.join(names[:8]) or 'nothing in it'}" + (", …" if len(names) > 8 else "")
    if isinstance(value, list):
        entries = cast("list[Json]", value)
        return f"an array of {kind(entries[0])}" if entries else "an empty array"
    return kind(value)
