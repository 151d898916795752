"""What is known of each step when the culprit is looked for: a few numbers with a meaning each.

``peer`` features serve conversations among equals, ``directed`` ones runs in which a manager
hands out work: how far the work had come means something else in each.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from lensd_graphtracer.answers import mentions
from lensd_graphtracer.flow_back import trace_back
from lensd_graphtracer.idg import Measures, Reading
from lensd_graphtracer.signals import Sign, Signal, find_signs
from lensd_graphtracer.trace import Kind, Trace, is_worker


class Family(StrEnum):
    """How the work is shared out."""

    PEER = "peer"
    DIRECTED = "directed"


#: Features that need the graph, left out by the ablation without one.
GRAPH_FEATURES = ("novelty", "origin")

#: Known only where the caller allows a look at the right answer.
ANSWER_FEATURE = "right_answer"

#: Per family: each feature and, in words, what a high value says.
FEATURES: Mapping[Family, Mapping[str, str]] = {
    Family.PEER: {
        "order": "it comes late in the conversation",
        "assumption": "it assumes, simulates or uses placeholders instead of looking up",
        "code": "it contains code",
        "crash_follows": "what it asked to run failed right after",
        "doubt_follows": "the next step says that something is wrong or missing",
        "crash_precedes": "it answers to a failure before it",
        "refusal": "it declines or asks others for what it should do",
        "idle": "nothing happens in it",
        "after_end": "the step before it concluded the work already",
        "novelty": "most of its facts come from no earlier step",
        "origin": "much of what the end of the run says comes from it",
        "share": "its agent does most of the work",
    },
    Family.DIRECTED: {
        "worker": "it does work rather than handing it out",
        "instruction": "it tells another agent what to do",
        "first_worker": "it is the first work done",
        "worker_order": "much work was done before it",
        "replan": "it throws the plan away",
        "doubt": "it speaks of an error or irrelevance",
        "doubt_follows": "the next step says that something is wrong or missing",
        "cut_off": "the run breaks off at it",
    },
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A step that may be the root cause, with its features and signs."""

    step: int
    agent: str
    features: Mapping[str, float]
    signs: Mapping[Signal, Sign]


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything the ranking looks at."""

    family: Family
    candidates: tuple[Candidate, ...]
    signs: Mapping[int, Mapping[Signal, Sign]]


def family_of(trace: Trace) -> Family:
    """Directed when any step is addressed to an agent."""
    directed = any(step.kind is Kind.INSTRUCTION for step in trace.steps)
    return Family.DIRECTED if directed else Family.PEER


def describe(
    trace: Trace,
    readings: Sequence[Reading],
    measures: Measures,
    right_answer: str | None = None,
    *,
    use_graph: bool = True,
) -> Scene:
    """Candidates with their features. Steps that only ask or only run what others wrote are none.

    Where nothing else spoke, every content step is a candidate. ``right_answer`` is looked for only
    when given; without ``use_graph`` the features that need it are zero.
    """
    steps = [reading.step for reading in readings]
    signs = [find_signs(step.content) for step in steps]
    family = family_of(trace)
    origin = trace_back(readings, measures.terminal)
    spoken = Counter(step.agent for step in steps if is_worker(step.agent))
    total = max(1, spoken.total())
    fitting = [k for k, step in enumerate(steps) if step.kind not in (Kind.TOOL, Kind.ASK)] or list(
        range(len(steps))
    )
    found: list[Candidate] = []
    workers_before = 0
    for order, k in enumerate(fitting):
        step, reading = steps[k], readings[k]
        before: Mapping[Signal, Sign] = signs[k - 1] if k else {}
        after: Mapping[Signal, Sign] = signs[k + 1] if k + 1 < len(steps) else {}
        runs_next = k + 1 < len(steps) and steps[k + 1].kind is Kind.TOOL
        works = is_worker(step.agent)
        values = {
            "order": math.log1p(order),
            "assumption": math.log1p(signs[k][Signal.ASSUMPTION].count)
            if Signal.ASSUMPTION in signs[k]
            else 0.0,
            "code": Signal.CODE in signs[k],
            "crash_follows": runs_next and Signal.CRASH in after,
            "doubt_follows": Signal.DOUBT in after or Signal.MISSING in after,
            "crash_precedes": Signal.CRASH in before,
            "refusal": Signal.REFUSAL in signs[k],
            "idle": Signal.IDLE in signs[k],
            "after_end": Signal.CONCLUSION in before or Signal.GIVING_UP in before,
            "novelty": reading.new_facts / max(1, reading.facts),
            "origin": origin[step.index],
            "share": spoken[step.agent] / total if works else 0.0,
            "worker": works,
            "instruction": step.kind is Kind.INSTRUCTION,
            "first_worker": works and workers_before == 0,
            "worker_order": math.log1p(workers_before),
            "replan": step.kind is Kind.THOUGHT and Signal.GIVING_UP in signs[k],
            "doubt": Signal.DOUBT in signs[k],
            "cut_off": k == len(steps) - 1 and step.kind is not Kind.CONTROL,
        }
        hidden = () if use_graph else GRAPH_FEATURES
        chosen = {name: 0.0 if name in hidden else float(values[name]) for name in FEATURES[family]}
        if right_answer is not None:
            chosen[ANSWER_FEATURE] = float(mentions(step.content, right_answer))
        found.append(Candidate(step.index, step.agent, chosen, signs[k]))
        workers_before += works
    return Scene(family, tuple(found), {step.index: s for step, s in zip(steps, signs, strict=True)})
