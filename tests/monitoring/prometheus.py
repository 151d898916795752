"""Runs a real Prometheus on what `lensd dashboards` writes, and asks it."""

import json
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lensd_server.telemetry.monitoring.files import write
from tests.ports import free_ports

PROGRAM = shutil.which("prometheus")
#: Why tests that need one are skipped.
MISSING = "prometheus is not installed: apt-get install prometheus"
#: How often it scrapes and evaluates here.
INTERVAL_S = 2


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an answer: its labels, and values at times."""

    labels: Mapping[str, str]
    times: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def ask(self, path: str, **parameters: object) -> Any:
        """The ``data`` of an answer of its HTTP API. Raises AssertionError with its complaint."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}?{query}: {error.read().decode()}") from error

    def query(self, expr: str, at: float | None = None) -> list[Series]:
        """The value of ``expr`` now, or at a time."""
        data = self.ask("query", query=expr, **({} if at is None else {"time": at}))
        assert data["resultType"] == "vector", expr
        return [Series(r["metric"], *_columns([r["value"]])) for r in data["result"]]

    def over(self, expr: str, start: float, end: float, step_s: float = INTERVAL_S) -> list[Series]:
        """The values of ``expr`` from ``start`` to ``end``."""
        data = self.ask("query_range", query=expr, start=start, end=end, step=step_s)
        return [Series(r["metric"], *_columns(r["values"])) for r in data["result"]]

    def firing(self) -> set[str]:
        """Names of the alerts that fire now."""
        return {a["labels"]["alertname"] for a in self.ask("alerts")["alerts"] if a["state"] == "firing"}

    def until(self, what: str, holds: Callable[[], bool], timeout_s: float = 60) -> None:
        """Waits for something that later scrapes will show. Raises AssertionError."""
        pause, deadline = threading.Event(), time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
            pause.wait(0.2)


def _columns(pairs: list[tuple[float, str]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(float(at) for at, _ in pairs), tuple(float(value) for _, value in pairs)


@contextmanager
def running_prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """Scrapes ``target`` with the files of `lensd dashboards` every other second; ends with the block."""
    assert PROGRAM is not None, MISSING
    write(folder)
    path = folder / "prometheus" / "prometheus.yml"
    configuration = yaml.safe_load(path.read_text())
    configuration["global"] = {"scrape_interval": f"{INTERVAL_S}s", "evaluation_interval": f"{INTERVAL_S}s"}
    configuration["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    path.write_text(yaml.safe_dump(configuration))
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    log = folder / "prometheus.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [
                PROGRAM,
                f"--config.file={path}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
                "--enable-feature=exemplar-storage",
                "--log.level=warn",
            ],
            stdout=out,
            stderr=out,
        )
    try:
        prometheus = Prometheus(f"http://{address}")
        prometheus.until(log.read_text() or "a ready Prometheus", lambda: _is_ready(prometheus.url))
        yield prometheus
    finally:
        process.terminate()
        process.wait(timeout=30)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=5) as response:
            return response.status == 200
    except OSError:
        return False
