"""A daemon to be watched, and callers that do everything there is to do, well and badly."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import grpc
from google.protobuf.struct_pb2 import Struct, Value

from lensd_client import Client
from lensd_client.errors import LensdError
from lensd_proto.v1.analysis_pb2 import AnalyzeRequest
from lensd_proto.v1.analysis_pb2_grpc import AnalysisServiceStub
from tests.bench.certificate import write_certificate
from tests.e2e.daemon import Daemon, install_stranger, running_daemon, save_tiny_models

#: Small, so that it is soon reached.
MAX_ANALYSES = 12
_MODELS = ("llama", "gpt2")
#: Has room only when the others make it: what forwards need, measured at the load, counts too.
_THIRD = "gemma2"
_BUDGET = 2_500_000
#: Stated, since what a batch needs grows with it, and otherwise it is whatever this machine does best with.
_BATCH_TOKENS = 64
#: Bytes of keys and values of each model, which count in the budget.
_CACHE = 250_000
_PROMPTS = (
    "The capital of France is",
    "When Mary and John went to the store, John gave a drink to",
    "One, two, three, four, five, six, seven,",
)


@dataclass(frozen=True, slots=True)
class Target:
    """A running daemon that speaks TLS, and the certificate by which callers know it."""

    daemon: Daemon
    certificate: Path

    def client(self) -> Client:
        """A caller that is an operator, too."""
        return Client(self.daemon.grpc, admin_target=self.daemon.admin, ca=self.certificate)

    def channel(self) -> grpc.Channel:
        """For what the client would not send."""
        credentials = grpc.ssl_channel_credentials(self.certificate.read_bytes())
        return grpc.secure_channel(self.daemon.grpc, credentials)


@contextmanager
def watched_daemon(root: Path) -> Iterator[Target]:
    """Serves tiny models over TLS, one of them broken, with the first-party analyzers and a stranger's."""
    plugin, models, state = root / "plugin", root / "models", root / "daemon"
    for folder in (plugin, models, state):
        folder.mkdir()
    install_stranger(plugin)
    save_tiny_models(models, *_MODELS, _THIRD)
    settings = f"[limits]\nmax_analyses = {MAX_ANALYSES}\ncaller_share = 1.0\nmax_stall_s = 1.0\n"
    settings += f"memory_bytes = {_BUDGET}\nmin_residency_s = 0.0\n"
    for name in (*_MODELS, _THIRD, "broken"):
        settings += f'[models.{name}]\nsource = "dir:{models / name}"\nmax_batch_tokens = {_BATCH_TOKENS}\n'
        settings += f"max_cache_bytes = {_CACHE}\n"
        settings += "preload = true\n" if name == "llama" else ""
    certificate, key = write_certificate(root, timedelta(days=90))
    settings += f'[tls]\ncert = "{certificate}"\nkey = "{key}"\n'
    (state / "lensd.toml").write_text(settings)
    flags = ("--config", str(state / "lensd.toml"))
    with running_daemon(state, *flags, environment={"PYTHONPATH": str(plugin)}) as daemon:
        yield Target(daemon, certificate)


def serve_callers(target: Target, seconds: float, callers: int = 4) -> int:
    """Callers that want results and get them, for a while; how many analyses they ran."""
    until = time.monotonic() + seconds

    def call(number: int) -> int:
        done = 0
        with target.client() as lens:
            while time.monotonic() < until:
                # Equal prompts at the same time share rows.
                prompt = _PROMPTS[(done + number // 2) % len(_PROMPTS)]
                model = _MODELS[done % 5 == 4]
                analyzer = ("dla", "dla", "residual")[done % 3]
                lens.analyze(analyzer, model=model, params={"prompt": prompt}).finish()
                if done % 7 == 0:
                    lens.analyze("tick", count=1).finish()
                done += 1
        return done

    with ThreadPoolExecutor(callers) as pool:
        return sum(pool.map(call, range(callers)))


def serve_dla(target: Target, seconds: float) -> int:
    """One caller of what is left when the stranger's plugin is switched off."""
    until, done = time.monotonic() + seconds, 0
    with target.client() as lens:
        while time.monotonic() < until:
            lens.analyze("dla", model="llama", prompt=_PROMPTS[0]).finish()
            done += 1
    return done


#: The trace of one analysis that a traced service asks for.
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
#: In every text that a hostile caller may choose.
HOSTILE = "ev1l"


def serve_traced(target: Target) -> None:
    """A caller whose own tracing says which trace the call is part of."""
    with target.channel() as channel:
        stub = AnalysisServiceStub(channel)
        request = AnalyzeRequest(analyzer="dla", model="llama")
        request.params["prompt"] = _PROMPTS[0]
        parent = f"00-{TRACE}-00f067aa0ba902b7-01"
        assert list(stub.Analyze(request, metadata=[("traceparent", parent)]))[-1].HasField("completed")


def invent_names(target: Target, start: int, count: int) -> None:
    """A hostile caller: new names, methods, metadata and broken messages again and again."""
    with target.channel() as channel:
        for number in range(start, start + count):
            odd = f'{HOSTILE}-{number}"}}\n{{\\'
            plain = f"{HOSTILE}-{number}"
            metadata = [
                ("traceparent", f"00-{plain}-01"),
                ("user-agent", plain),
                (plain, odd.encode("ascii", "replace").decode().replace("\n", "")),
            ]
            for request in (
                AnalyzeRequest(analyzer=odd, model="llama", request_id=plain),
                AnalyzeRequest(analyzer="dla", model=odd, request_id=plain),
                AnalyzeRequest(analyzer="dla", model=plain, request_id=plain),
                AnalyzeRequest(analyzer=plain, model=plain, request_id=odd),
                AnalyzeRequest(
                    analyzer="dla",
                    model="llama",
                    request_id=plain,
                    params=Struct(fields={odd: Value(string_value=odd)}),
                ),
            ):
                _is_refused(
                    channel, "/lensd.v1.AnalysisService/Analyze", request.SerializeToString(), metadata
                )
            for path in (f"/{plain}/{plain}", f"/lensd.v1.AnalysisService/{plain}", f"/{plain}"):
                _is_refused(channel, path, odd.encode(), metadata)
            _is_refused(channel, "/lensd.v1.ModelService/GetModel", odd.encode(), metadata)


def _is_refused(channel: grpc.Channel, path: str, message: bytes, metadata: list[tuple[str, str]]) -> None:
    try:
        list(channel.unary_stream(path)(message, metadata=metadata, timeout=10))
    except grpc.RpcError:
        return
    raise AssertionError(f"{path} should have been refused")


def misbehave(target: Target) -> None:
    """Each way for an analysis to fail that leaves the daemon as it was."""
    with target.client() as lens:
        _fails(lens, "dla", model="llama", prompt=["not a text"])
        _fails(lens, "dla", model="no-such-model", prompt="x")
        _fails(lens, "wait", model="llama", timeout_s=0.2)
        _cancel_on_the_device(target, lens)
        _overfill(lens)
        lens.unload("gpt2")
        list(lens.load("gpt2"))
        lens.analyze("residual", model=_THIRD, prompt=_PROMPTS[0]).finish()
        lens.health()


def break_things(target: Target) -> None:
    """What an operator should hear of: a plugin's exception, a model that cannot be loaded, and an analyzer
    that goes on after it was cancelled and is switched off for that."""
    with target.client() as lens:
        _fails(lens, "crash")
        _fails(lens, "dla", model="broken", prompt="x")
        pause = threading.Event()
        run = lens.analyze("loop", seconds=15.0)
        next(event for event in run if getattr(event, "name", "") == "looping")
        pause.wait(0.5)  # it says so before it loops: a cancel at once may still find it between the two
        run.cancel()
        for _ in range(200):
            if any(plugin.status == "quarantined" for plugin in lens.plugins()):
                return
            pause.wait(0.1)
        raise AssertionError("the analyzer that did not give way is not switched off")


def _fails(
    lens: Client, analyzer: str, model: str = "", timeout_s: float | None = None, **params: object
) -> None:
    try:
        lens.analyze(analyzer, model=model, params=params, timeout_s=timeout_s).finish()
    except LensdError:
        return
    raise AssertionError(f"{analyzer} should have failed")


def _cancel_on_the_device(target: Target, lens: Client) -> None:
    """Cancels until a cancel has met rows on the device: the models are too quick for it to be sure."""
    many = [f"{prompt} {number}" for number in range(60) for prompt in _PROMPTS]
    for _ in range(50):
        run = lens.analyze("dla", model="llama", prompts=many)
        next(event for event in run if getattr(event, "name", ""))
        run.cancel()
        if "lensd_cancel_latency_seconds_count" in target.daemon.scrape():
            return
    raise AssertionError("no cancel met a row on the device")


def _overfill(lens: Client) -> None:
    """One analysis more than there may be."""
    runs = [lens.analyze("wait", model="llama") for _ in range(MAX_ANALYSES)]
    for run in runs:
        next(event for event in run if getattr(event, "name", ""))
    _fails(lens, "tick", count=1)
    for run in runs:
        run.cancel()
