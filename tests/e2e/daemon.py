"""Runs ``lensd serve`` as a process of its own, as an operator would."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

_READY = re.compile(r"^lensd ready grpc=(\S+) metrics=(\S+) admin=(\S+) models=(\S*)$")


@dataclass
class Daemon:
    """A running daemon and where it listens."""

    process: subprocess.Popen[str]
    grpc: str
    metrics: str
    admin: str
    models: list[str]
    log: Path
    stdout: list[str] = field(default_factory=list[str])

    def scrape(self, path: str = "/metrics") -> str:
        """What the metrics port answers."""
        with urllib.request.urlopen(f"http://{self.metrics}{path}", timeout=10) as response:
            return response.read().decode()

    def stop(self) -> int:
        """Asks it to stop, waits, and returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


@contextmanager
def running_daemon(
    folder: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    lensd: Path | None = None,
) -> Iterator[Daemon]:
    """A daemon with free ports and state below ``folder``, stopped at the end.

    ``lensd`` is the command of the environment to run it in, by default this one.
    """
    log = folder / "daemon.log"
    command = [
        str(lensd or Path(sys.executable).with_name("lensd")),
        "serve",
        *("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"),
        *("--state-dir", str(folder / "state")),
        *arguments,
    ]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, **(environment or {})},
        )
    try:
        daemon = _wait_until_ready(process, log)
        yield daemon
        daemon.stop()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _wait_until_ready(process: subprocess.Popen[str], log: Path) -> Daemon:
    assert process.stdout is not None
    for line in process.stdout:
        if ready := _READY.match(line.strip()):
            grpc, metrics, admin, models = ready.groups()
            daemon = Daemon(process, grpc, metrics, admin, models.split(","), log)
            # Read on, so that a full pipe never blocks the daemon.
            threading.Thread(target=_drain, args=(process.stdout, daemon.stdout), daemon=True).start()
            return daemon
    raise AssertionError(f"lensd ended with {process.wait()} before it was ready:\n{log.read_text()}")


def _drain(stream: IO[str], lines: list[str]) -> None:
    with contextlib.suppress(ValueError):  # closed once the process is gone
        lines.extend(stream)


def save_tiny_models(root: Path, *names: str) -> Path:
    """Saves tiny models of these architectures with their tokenizer, one folder each."""
    from lensd_server.tiny_models import tiny_model, tiny_tokenizer

    for name in names:
        tiny_model(name).save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    return root


def install_stranger(root: Path, plugin: Path | None = None) -> Path:
    """Makes ``root``, on PYTHONPATH, an installed distribution with a lensd entry point: ``plugin``, or the usual one."""
    shutil.copy(plugin or Path(__file__).with_name("strangers_plugin.py"), root / "stranger.py")
    info = root / "stranger-1.2.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.2.3\n")
    (info / "entry_points.txt").write_text("[lensd]\nstranger = stranger\n")
    return root
