"""``python -m lensd_client.demo``: what every installed analyzer does, through a real daemon.

Starts ``lensd serve`` as an operator would, runs each analyzer's own examples as a caller would,
prints what they find and what was checked, and stops the daemon. The exit status is 0 only if
everything worked.
"""

import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

from lensd_client.catalog import Analyzer, Example
from lensd_client.client import Client
from lensd_client.errors import LensdError
from lensd_client.heatmap import visible
from lensd_client.render import heading, render
from lensd_client.results import Record, Value
from lensd_client.runs import Run

_READY = re.compile(r"^lensd ready grpc=(\S+) ")
#: The daemon logs at level debug what it does to load a model.
_STAGE = re.compile(r'"stage": "([a-z ]+)"')
_LOG = {"LENSD_SERVER__LOG_LEVEL": "debug", "LENSD_SERVER__LOG_FORMAT": "json"}
#: Converting the embedded weights takes up to half a minute once, on a slow machine minutes.
_START_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 30.0
#: Rows of a table that say the most.
_TOP_ROWS = 8
#: Columns of output that goes to a file or a pipe.
_FILE_WIDTH = 120


class DemoFailed(Exception):
    """The demo cannot go on; the message says why and what to do."""


@dataclass(slots=True)
class _Output:
    """What the daemon writes: lines of standard output, ``None`` at its end; the newest of its log."""

    stdout: "queue.SimpleQueue[str | None]" = field(default_factory=queue.SimpleQueue[str | None])
    log: deque[str] = field(default_factory=lambda: deque[str](maxlen=30))
    #: What it does to load the model ("convert").
    stage: str = ""

    def follow(self, process: subprocess.Popen[str]) -> None:
        """Reads both pipes on threads, so that a full one never blocks the daemon."""
        for pipe, read in ((process.stdout, self._read_stdout), (process.stderr, self._read_log)):
            threading.Thread(target=read, args=(pipe,), daemon=True).start()

    def _read_stdout(self, pipe: IO[str]) -> None:
        for line in pipe:
            self.stdout.put(line)
        self.stdout.put(None)

    def _read_log(self, pipe: IO[str]) -> None:
        for line in pipe:
            if stage := _STAGE.search(line):
                self.stage = stage[1]
            if '"level": "debug"' not in line:
                self.log.append(line)


def main() -> int:
    """Runs the demo; returns the exit status."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the daemon is stopped then, too
    try:
        with running_daemon(console) as target, Client(target) as lens:
            failures = run_examples(lens, console)
    except (DemoFailed, LensdError) as failure:
        failures = [str(failure)]
    except KeyboardInterrupt:
        console.print("stopped, and the daemon with it")
        return 130
    for failure in failures:
        console.print(f"[bold red]demo failed:[/] {escape(failure)}", soft_wrap=True)
    if not failures:
        console.print("\n[green]all examples ran; the daemon has stopped[/]")
    return 1 if failures else 0


@contextmanager
def running_daemon(console: Console) -> Generator[str, None, None]:
    """``lensd serve`` on free ports; yields its address, stops it however the block is left."""
    with tempfile.TemporaryDirectory(prefix="lensd-demo-") as state:
        free = "127.0.0.1:0"
        listen = ("--listen", free, "--admin-listen", free, "--metrics-listen", free, "--state-dir", state)
        process = subprocess.Popen(
            [_lensd_command(), "serve", *listen],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **_LOG},
            # In the terminal's group, Ctrl-C would reach it past us.
            start_new_session=True,
        )
        output = _Output()
        output.follow(process)
        try:
            yield _wait_until_ready(process, output, console)
        finally:
            _stop(process)


def run_examples(lens: Client, console: Console) -> list[str]:
    """Runs every example of every analyzer, in order; returns what went wrong."""
    failures = [f"plugin {p.name} is {p.status}: {p.problem}" for p in lens.plugins() if p.status == "broken"]
    analyzers = [lens.analyzer(listed.name) for listed in lens.analyzers()]
    if not analyzers:
        failures.append("no analyzer is installed: pip install lensd-dla")
    for analyzer in analyzers:
        console.print()
        console.rule(f"[bold]{escape(analyzer.name)}[/] {escape(analyzer.version)}", align="left")
        console.print(escape(analyzer.summary))
        for example in analyzer.examples:
            try:
                _run_example(lens, analyzer, example, console)
            except LensdError as error:
                console.print(f"  [red]{escape(str(error))}[/]")
                failures.append(f"{analyzer.name}/{example.name}: {error.reason}")
    return failures


def _run_example(lens: Client, analyzer: Analyzer, example: Example, console: Console) -> None:
    console.print(f"\n[bold]{escape(example.name)}[/]: {escape(example.shows)}")
    call = ", ".join(f"{name}={value!r}" for name, value in example.params.items())
    console.print(f'[dim]lens.analyze("{analyzer.name}", {escape(call)})[/]')
    run = lens.analyze(analyzer.name, _model_for(analyzer), example.params).finish()
    for warning in run.warnings:
        console.print(f"  [yellow]{escape(warning.message)}[/] ({warning.reason})")
    for item in run.items():
        if item.error is not None:
            raise item.error
    shown = [_in_short(result) for result in run.results()]
    console.print(Padding(Group(*shown), (1, 0, 1, 2)))
    console.print(f"[dim]checked: {escape(_checks(run))}[/]")


def _in_short(result: Value) -> RenderableType:
    """The most telling part of a result: the top of a table, the plain values of a record."""
    if not isinstance(result, Record):
        return render(result, max_rows=_TOP_ROWS)
    plain = [
        f"{name} [bold]{escape(visible(_plain(value)))}[/]"
        for name, value in result.items()
        if isinstance(value, str | int | float)
    ]
    return Group(heading(result), Text.from_markup(" · ".join(plain)))


def _plain(value: str | float) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return repr(text) if text != text.strip() else text  # " Paris" is not "Paris"


def _model_for(analyzer: Analyzer) -> str:
    """A model that can serve ``analyzer``; empty when it needs none. Raises DemoFailed."""
    if not analyzer.needs_model:
        return ""
    for candidate in analyzer.compatibility:
        if candidate.satisfied:
            return candidate.model
    reasons = [reason for candidate in analyzer.compatibility for reason in candidate.reasons]
    raise DemoFailed(
        f"no resident model can serve {analyzer.name}: {'; '.join(reasons) or 'none is resident'}"
    )


def _checks(run: Run) -> str:
    """What this client verified of a finished run, and what the analyzer reports of its own checks."""
    done = run.completed
    if done is None:
        raise DemoFailed("the run is not finished")
    said = [f"{done.events} events in sequence", f"{done.results} results complete"]
    if done.checksums:
        said.append(f"{len(done.checksums)} tensor checksums match")
    for result in run.results():
        if isinstance(result, Record):
            said += [
                f"{name.replace('_', ' ')} {value:.1e}"
                for name, value in result.items()
                if name.endswith("_error") and isinstance(value, float)
            ]
    used = done.usage
    said.append(f"{used.tokens} tokens in {used.total_s:.2f} s, {used.forward_s:.2f} s of it forward passes")
    return "; ".join(said)


def _lensd_command() -> str:
    beside = Path(sys.executable).with_name("lensd")
    found = str(beside) if beside.exists() else shutil.which("lensd")
    if found is None:
        raise DemoFailed("the lensd command is not installed: pip install lensd-server")
    return found


def _wait_until_ready(process: subprocess.Popen[str], output: _Output, console: Console) -> str:
    """The daemon's address, once it serves. Raises DemoFailed when it ends or takes too long."""
    started, converting = time.monotonic(), 0
    with console.status("starting lensd") as status:
        while (waited := time.monotonic() - started) < _START_TIMEOUT_S:
            converting = converting + 1 if output.stage == "convert" else 0
            if converting == 3:  # where it was done before, the stage is over at once
                console.print("converting the embedded weights: half a minute, only once")
            try:
                line = output.stdout.get(timeout=0.5)
            except queue.Empty:
                status.update(f"starting lensd: {output.stage or 'import'} ({waited:.0f} s)")
                continue
            if line is None:
                raise DemoFailed(f"lensd ended with status {process.wait()}:\n{''.join(output.log)}")
            if ready := _READY.match(line):
                console.print(f"{escape(line.strip())} [dim](after {waited:.1f} s)[/]")
                return ready[1]
    raise DemoFailed(f"lensd was not ready after {_START_TIMEOUT_S:.0f} s:\n{''.join(output.log)}")


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
