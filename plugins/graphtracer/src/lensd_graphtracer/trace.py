"""What every log becomes before anything is computed: steps in order, each said by an agent.

The invariant: ``steps[k].index`` is the place in the log as it was sent, so an answer can be
looked up there; nothing that judges the run (labels, verdicts) has a field here.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

#: "Orchestrator (thought)", "Orchestrator (-> WebSurfer)".
_QUALIFIED = re.compile(r"^(?P<agent>.*?) \((?P<note>.*)\)\s*$", re.DOTALL)
_ADDRESS = re.compile(r"^->\s*(?P<to>.+)$", re.DOTALL)
#: Speakers that only run what others wrote.
_EXECUTOR = re.compile(
    r"(?i)(terminal|executor|interpreter|sandbox|^environment$|^shell$|^tools?$|^function$)"
)
#: Speakers that only asked.
_ASKER = re.compile(r"(?i)^(human|user|user_?proxy|customer)$")
#: Speakers that hand out work and keep the books.
_MANAGER = re.compile(r"(?i)(orchestrator|manager|coordinator|supervisor|router|planner|^system$)")

#: Stands in for a speaker the log does not name.
UNNAMED = "(unnamed)"


class Kind(StrEnum):
    """What a step is for the graph."""

    ASK = "ask"
    MESSAGE = "message"
    THOUGHT = "thought"
    INSTRUCTION = "instruction"
    TOOL = "tool"
    CONTROL = "control"


@dataclass(frozen=True, slots=True)
class Step:
    """One entry of the log. ``to`` is who it is addressed to, where the log says so."""

    index: int
    agent: str
    content: str
    kind: Kind
    to: str = ""
    #: An identifier of the log's own, such as a span id.
    ref: str = ""


@dataclass(frozen=True, slots=True)
class Trace:
    """A run of several agents. ``right_answer`` is used only where a caller allows it."""

    task: str
    steps: tuple[Step, ...]
    format: str
    right_answer: str | None = None
    final_answer: str | None = None

    @property
    def content_steps(self) -> tuple[Step, ...]:
        """Steps that say something."""
        return tuple(step for step in self.steps if step.content.strip())


def split_speaker(raw: str) -> tuple[str, str]:
    """Agent and note of a speaker as logged: ``"A (-> B)"`` -> ``("A", "-> B")``."""
    text = raw.strip()
    if (found := _QUALIFIED.match(text)) and found["agent"].strip():
        return found["agent"].strip(), found["note"].strip()
    return text or UNNAMED, ""


def read_speaker(raw: str) -> tuple[str, Kind, str]:
    """Normalised agent, kind and addressee of a speaker as logged."""
    agent, note = split_speaker(raw)
    if address := _ADDRESS.match(note):
        return agent, Kind.INSTRUCTION, address["to"].strip()
    if note.lower() == "thought":
        return agent, Kind.THOUGHT, ""
    if note:
        return agent, Kind.CONTROL, ""
    return agent, kind_of(agent), ""


def kind_of(agent: str) -> Kind:
    """What an agent's plain steps are, by its name."""
    if _EXECUTOR.search(agent):
        return Kind.TOOL
    return Kind.ASK if _ASKER.match(agent) else Kind.MESSAGE


def is_manager(agent: str) -> bool:
    """Whether the name is that of one who hands out work."""
    return bool(_MANAGER.search(agent))


def is_worker(agent: str) -> bool:
    """Whether the name is neither an executor's, an asker's nor a manager's."""
    return kind_of(agent) is Kind.MESSAGE and not is_manager(agent)
