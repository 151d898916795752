"""Answers of a running server, asked through ``lensctl``: what the evaluation judges is what callers get."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lensd_graphtracer.flow import Flow
from lensd_graphtracer.params import GraphTracerParams


class ServerFailed(Exception):
    """The server, or ``lensctl``, gave no answer; the message says what it said."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one log."""

    agent: str
    step: int
    confidence: float
    tokens: int
    seconds: float
    flows: tuple[Flow, ...]


@dataclass(frozen=True, slots=True)
class Server:
    """A daemon at ``target``; ``model`` may be empty where none is used."""

    target: str
    model: str = ""

    def ask(self, log: Mapping[str, Any], settings: Mapping[str, Any]) -> Answer:
        """Analyses one log. Raises ServerFailed."""
        params = {"trace": log, "format": "who_and_when", **settings}
        GraphTracerParams.parse(params)  # a wrong setting is found here, with its name
        with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
            json.dump(params, file)
            file.flush()
            asked = ["analyze", "graphtracer", "--params", f"@{file.name}", "--json"]
            if self.model:
                asked += ["--model", self.model]
            done = subprocess.run(
                [_lensctl(), "--target", self.target, *asked], capture_output=True, text=True, check=False
            )
        events = [cast("dict[str, Any]", json.loads(line)) for line in done.stdout.splitlines() if line]
        if done.returncode != 0:
            raise ServerFailed(done.stderr.strip() or (json.dumps(events[-1]) if events else "no answer"))
        return _read(events)


def _read(events: list[dict[str, Any]]) -> Answer:
    results = {event["name"]: event for event in events if event["event"] == "result"}
    root = results["root_cause"]["record"]
    completed = next(event for event in events if event["event"] == "completed")
    usage = completed.get("usage", completed)
    flows: list[Flow] = []
    if "flow" in results:
        columns = results["flow"]["table"]["columns"]
        rows = zip(columns["source"], columns["target"], columns["value"], columns["total"], strict=True)
        flows = [Flow(int(s), int(t), float(v), float(total), 0, 0) for s, t, v, total in rows]
    return Answer(
        agent=str(root["agent"]),
        step=int(root["step"]),
        confidence=float(root["confidence"]),
        tokens=int(usage.get("tokens", 0)),
        seconds=float(usage.get("total_s", 0.0)),
        flows=tuple(flows),
    )


def _lensctl() -> str:
    beside = Path(sys.executable).with_name("lensctl")
    found = str(beside) if beside.exists() else shutil.which("lensctl")
    if found is None:
        raise ServerFailed("the lensctl command is not installed: pip install lensd-client")
    return found
