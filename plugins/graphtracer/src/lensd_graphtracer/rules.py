"""Trivial rules: what an answer is worth before anything is analysed. They belong in every table.

Each gives an agent and a step, scored apart, as the published ones are; ``is_place`` says whether
the agent is the one who spoke at the step, without which it is no prediction.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lensd_graphtracer.trace import Kind, Step, is_worker, kind_of


@dataclass(frozen=True, slots=True)
class Guess:
    """An agent and a step; ``step`` is ``None`` for rules that name only an agent."""

    agent: str
    step: int | None


Rule = Callable[[Sequence[Step]], Guess]


def first_worker(steps: Sequence[Step]) -> Guess:
    """The first that speaks and is no manager, asker or executor; else the first step."""
    place = next((s for s in steps if is_worker(s.agent)), steps[0])
    return Guess(place.agent, place.index)


def last_worker(steps: Sequence[Step]) -> Guess:
    """The last that speaks and is no manager, asker or executor; else the last step."""
    place = next((s for s in reversed(steps) if is_worker(s.agent)), steps[-1])
    return Guess(place.agent, place.index)


def most_frequent(steps: Sequence[Step]) -> Guess:
    """The agent with most steps, managers included, ties to the first to appear; and step 1."""
    spoken = Counter(s.agent for s in steps if kind_of(s.agent) is Kind.MESSAGE) or Counter(
        s.agent for s in steps
    )
    most = max(spoken.values())
    agent = next(s.agent for s in steps if spoken.get(s.agent) == most)
    return Guess(agent, min(1, len(steps) - 1))


def last_speaker(steps: Sequence[Step]) -> Guess:
    """Whoever spoke last, and the last step."""
    return Guess(steps[-1].agent, steps[-1].index)


#: By the name they have in tables.
RULES: dict[str, Rule] = {
    "first worker that speaks, and its step": first_worker,
    "last worker that speaks, and its step": last_worker,
    "most frequent speaker, step 1": most_frequent,
    "last speaker, last step": last_speaker,
}
