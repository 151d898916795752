"""How far a fit has come, as what its checkpoint holds."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from safetensors.torch import load, save
from torch import Tensor

from lensd_vsa_probe.report import Report
from lensd_vsa_probe.states import States

_STATES = ("pooled", "embedded", "top", "lens")


@dataclass(slots=True)
class FitProgress:
    """``states`` by wording, ``finished`` runs, the run that is training and the finished probe."""

    states: dict[str, States]
    report: Report = field(default_factory=Report)
    finished: list[str] = field(default_factory=list[str])
    trainer: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    probe: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def blobs(self) -> dict[str, bytes]:
        """For the checkpoint."""
        described = {
            "done": {name: states.done for name, states in self.states.items()},
            "finished": self.finished,
            "lines": self.report.lines,
            "history": self.report.history,
        }
        kept = {name: save(_tensors(states)) for name, states in self.states.items()}
        return {
            "progress.json": json.dumps(described).encode(),
            "trainer.safetensors": save(self.trainer),
            "probe.safetensors": save(self.probe),
            **{f"states-{name}.safetensors": content for name, content in kept.items()},
        }

    def restore(self, blobs: Mapping[str, bytes]) -> None:
        """Goes on where :meth:`blobs` was called, for the same request; from the start without any."""
        if "progress.json" not in blobs:
            return
        described = cast("dict[str, Any]", json.loads(blobs["progress.json"]))
        for name, states in self.states.items():
            if (content := blobs.get(f"states-{name}.safetensors")) is not None:
                for part, value in load(content).items():
                    setattr(states, part, value)
                states.done = int(described["done"][name])
        self.finished = list(described["finished"])
        self.report = Report(described["lines"], described["history"])
        self.trainer = load(blobs["trainer.safetensors"])
        self.probe = load(blobs["probe.safetensors"])


def _tensors(states: States) -> dict[str, Tensor]:
    return {part: cast("Tensor", getattr(states, part)).contiguous() for part in _STATES}
