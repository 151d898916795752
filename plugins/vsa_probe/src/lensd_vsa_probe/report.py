"""The evaluation: one row of scores per encoder and baseline, and the record stored with the probe."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from lensd_api import Record, Table
from lensd_vsa_probe.algebra import bipolar
from lensd_vsa_probe.codebook import Codebook
from lensd_vsa_probe.corpus import Example
from lensd_vsa_probe.linear import predict, ridge
from lensd_vsa_probe.listing import integers
from lensd_vsa_probe.measures import DEPTHS, Scores, constant, score, token_hits
from lensd_vsa_probe.runs import Task
from lensd_vsa_probe.splits import KNOWN
from lensd_vsa_probe.states import States

_LIMITS = (
    "A probe reads which concepts it was fitted on are active; a pair never seen has a random vector and "
    "cannot be decoded. Scores of the row split count what is memorised: read them beside the other "
    "splits and the controls."
)


@dataclass(slots=True)
class Line:
    """One row of the table: what was tested on which held-out rows."""

    name: str
    split: str
    scores: Scores

    def plain(self) -> dict[str, Any]:
        """JSON-like."""
        return {"name": self.name, "split": self.split, **self.scores.columns()}


@dataclass(slots=True)
class Report:
    """Lines as they come, in an order that a resumed fit repeats; JSON-like through and through."""

    lines: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    history: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def add(self, name: str, split: str, scores: Scores | None) -> None:
        """Notes the scores; nothing for an empty selection."""
        if scores is not None:
            self.lines.append(Line(name, split, scores).plain())

    def has(self, name: str) -> bool:
        """Whether that line is there."""
        return any(line["name"] == name for line in self.lines)

    def line(self, name: str) -> dict[str, Any]:
        """Raises StopIteration when there is none."""
        return next(line for line in self.lines if line["name"] == name)

    def table(self) -> Table:
        """Every line."""
        names = list(self.lines[0])
        return Table("scores", {name: [line[name] for line in self.lines] for name in names})


@dataclass(frozen=True, slots=True)
class Bench:
    """What scores are computed from."""

    examples: Sequence[Example]
    codebook: Codebook
    states: States
    #: [example] the token that begins the target; -1 where nothing is asked for.
    wanted: Tensor

    def model_scores(self, rows: Sequence[int]) -> dict[str, dict[int, float]]:
        """The model's own answers: likeliest next tokens, and the same among concepts only."""
        chosen = list(rows)
        return {
            "next_token": token_hits(self.states.top[chosen], self.wanted[chosen]),
            "logit_lens": token_hits(self.states.lens[chosen], self.wanted[chosen]),
        }

    def model_is_right(self, rows: Sequence[int]) -> list[bool]:
        """Per row, whether the likeliest next token begins the target."""
        chosen = list(rows)
        return [bool(hit) for hit in integers(self.states.top[chosen, 0] == self.wanted[chosen])]


def add_run(report: Report, bench: Bench, task: Task, decoded: Tensor) -> Iterator[None]:
    """Scores of one trained encoder; the probe's come with the baselines of the same rows.

    Yields between two pieces of work, so that others get in between.
    """
    rows, split = task.test_rows, task.run.split
    examples = [bench.examples[row] for row in rows]
    report.add(task.run.name, split, score(decoded, examples, bench.codebook))
    if task.run.name != "probe":
        return
    yield
    report.add("constant", split, score(constant(examples, bench.codebook), examples, bench.codebook))
    blind = mean_target(task.data.targets).expand(len(rows), -1)
    report.add("mean_target", split, score(blind, examples, bench.codebook))
    yield
    weights = ridge(task.data.states, task.data.targets, task.data.held_states, task.data.held_targets)
    linear = predict(weights, task.test_states)
    report.add("linear_map", split, score(linear, examples, bench.codebook))
    yield
    if not examples[0].pairs:
        return
    for name, at in bench.model_scores(rows).items():
        report.lines.append(
            dict.fromkeys(report.lines[0])
            | {"name": f"model_{name}", "split": split, "rows": len(rows)}
            | {f"probing_at_{k}": at[k] for k in DEPTHS}
        )
    right = bench.model_is_right(rows)
    for name, wanted in (("probe_where_model_is_right", True), ("probe_where_model_is_wrong", False)):
        some = [i for i, is_right in enumerate(right) if is_right is wanted]
        chosen = [examples[i] for i in some]
        report.add(name, split, score(decoded[some], chosen, bench.codebook))


def evaluation(report: Report, facts: dict[str, Any]) -> Record:
    """The record: the probe's scores beside what they have to beat, and what the splits mean."""
    probe = report.line("probe")
    beside = {
        f"{line['name']}_at_1": line["probing_at_1"]
        for line in report.lines
        if line["name"] != "probe" and line["probing_at_1"] is not None
    }
    values = {
        **{
            name: value
            for name, value in probe.items()
            if name not in ("name", "split") and value is not None
        },
        "constant_bit_accuracy": report.line("constant")["bit_accuracy"],
        "constant_cosine": report.line("constant")["cosine"],
        **beside,
        "split": probe["split"],
        "known": KNOWN[probe["split"]],
        **facts,
        "scores": report.lines,
        "limits": _LIMITS,
    }
    return Record("evaluation", values)


def epoch_row(run: str, epoch: Any, constant_cosine: float) -> dict[str, Any]:
    """One row of the table ``training``."""
    return {"run": run, **asdict(epoch), "constant_cosine": constant_cosine}


def mean_target(targets: Tensor) -> Tensor:
    """[dim]: N(mean of ``targets``), what a map that ignores the model's state does best to answer.

    With few pairs it is a memory of all of them, from which every key unbinds its value.
    """
    return bipolar(targets.mean(0))


def mean_agreement(targets: Tensor) -> float:
    """Cosine of a constant -1 with ``targets`` [n, dim]."""
    return -targets.mean().item() if len(targets) else float(torch.nan)
