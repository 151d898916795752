"""A daemon with its models, its plugins and its disk, started anew by us as a supervisor would."""

import os
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from lensd_client import Client
from tests.e2e.daemon import Daemon, running_daemon
from tests.faults.traffic import PROMPTS, Answer, ask
from tests.ports import free_ports

#: Loaded when it is asked for; its file is what gets damaged.
VICTIM = "victim"
STALL_S = 1.0
MAX_ANALYSES = 32

_CONFIG = """
[server]
grace_s = 5.0
cache_dir = "{folder}/cache"
[limits]
max_stall_s = {stall_s}
max_analyses = {max_analyses}
[models.llama]
source = "dir:{folder}/llama"
preload = true
[models.victim]
source = "dir:{folder}/victim"
"""


class Site:
    """Everything below one folder; the daemon keeps its address when it is started anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.starts = 0
        self.right: dict[str, Answer] = {}
        self._stack = ExitStack()
        self._ports = free_ports(3)
        _save_model(folder / "llama", "llama")
        _save_model(folder / VICTIM, "llama")
        (folder / "site").mkdir()
        for name in ("hostile", "stuck"):
            _install(folder / "site", name)
        self._clock = folder / "clock"
        self.move_clock(0)
        self._environment = {"FAULT_CLOCK": str(self._clock)}
        if shutil.which("cc"):
            self._environment["LD_PRELOAD"] = str(_build_shim(folder))
        (folder / "lensd.toml").write_text(
            _CONFIG.format(folder=folder, stall_s=STALL_S, max_analyses=MAX_ANALYSES)
        )
        self.daemon = self.start()
        with Client(self.daemon.grpc) as client:
            self.right = {prompt: ask(client, prompt) for prompt in PROMPTS}

    def start(self) -> Daemon:
        """Starts the daemon on what the last one left behind, and waits until it is ready."""
        self._stack.close()
        self.starts += 1
        home = self.folder / f"daemon-{self.starts}"
        home.mkdir()
        path = os.pathsep.join(filter(None, [str(self.folder / "site"), os.environ.get("PYTHONPATH", "")]))
        listen, admin, metrics = (f"127.0.0.1:{port}" for port in self._ports)
        self.daemon = self._stack.enter_context(
            running_daemon(
                home,
                *("--config", str(self.folder / "lensd.toml"), "--state-dir", str(self.state)),
                *("--listen", listen, "--admin-listen", admin, "--metrics-listen", metrics),
                environment={"PYTHONPATH": path, **self._environment},
            )
        )
        return self.daemon

    def started_anew_after(self, expected_status: int) -> None:
        """Waits until the daemon ends with ``expected_status`` and starts it again."""
        status = self.daemon.process.wait(timeout=60)
        assert status == expected_status, f"ended with {status}:\n{self.daemon.log.read_text()[-3000:]}"
        self.start()

    def move_clock(self, ahead_s: int) -> None:
        """Lets the daemon's wall clock run that far ahead of this machine's."""
        content = struct.pack("=q", ahead_s)
        # In place: the daemon has the file mapped.
        with self._clock.open("r+b" if self._clock.exists() else "wb") as file:
            file.write(content)

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A new client, once it is connected: gRPC goes on for a while to believe that nobody answers."""
        with Client(self.daemon.grpc, admin_target=self.daemon.admin) as client:
            client.wait_until_ready(60.0)
            yield client

    @property
    def process(self) -> psutil.Process:
        """The daemon's process."""
        return psutil.Process(self.daemon.process.pid)

    def log(self) -> str:
        """What the present daemon has logged."""
        return self.daemon.log.read_text()

    def close(self) -> None:
        """Stops the daemon."""
        self._stack.close()


def until(done: Callable[[], object], what: str, timeout_s: float = 30.0) -> None:
    """Asks ``done`` until it holds: for what an outsider can only look at."""
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def _build_shim(folder: Path) -> Path:
    """The library that moves a process's wall clock."""
    shim = folder / "clock_shim.so"
    source = Path(__file__).with_name("clock_shim.c")
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(shim), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return shim


def _save_model(folder: Path, kind: str) -> None:
    from lensd_server.tiny_models import tiny_model, tiny_tokenizer

    tiny_model(kind).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def _install(site: Path, name: str) -> None:
    """A folder that, on PYTHONPATH, is an installed distribution with a lensd entry point."""
    shutil.copy(Path(__file__).with_name(f"{name}_plugin.py"), site / f"{name}_plugin.py")
    info = site / f"{name}-1.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n")
    (info / "entry_points.txt").write_text(f"[lensd]\n{name} = {name}_plugin\n")
