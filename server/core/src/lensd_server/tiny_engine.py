"""The real engine over tiny real models, driven synchronously: what analyzers are tested with."""

import asyncio
import hashlib
import tempfile
import threading
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from transformers import PreTrainedModel

from lensd_api import Analyzer, LensdError, ModelCard
from lensd_api.results import Result
from lensd_api.testing import Engine, Job, Outcome, Residue
from lensd_server.engine.batching.turn import Turn
from lensd_server.engine.device import Devices
from lensd_server.engine.events import (
    AnalysisEvent,
    AnalysisRequest,
    Completed,
    Found,
    RegisteredAnalyzer,
    Warned,
)
from lensd_server.engine.executor import LocalExecutor
from lensd_server.engine.models.loading import ClaimMemory, LoadedModel, Report, prepare
from lensd_server.engine.models.residency import Residency
from lensd_server.engine.storage import Storage
from lensd_server.settings import LimitSettings, ModelSettings
from lensd_server.tiny_models import TINY, tiny_tokenizer

T = TypeVar("T")

#: A gated RMS-norm decoder, one with LayerNorm, biases and learned positions, one with experts.
MODELS = ("llama", "gpt2", "mixtral")


class TinyLoader:
    """Builds the tiny model that a source ``tiny:NAME`` names, where its settings want it."""

    def __init__(self, cpu_turn: Turn) -> None:
        self._devices = Devices(cpu_turn)
        # The generator that is seeded is the process's: two that are built at once would draw from each other's.
        self._building = threading.Lock()

    def load(
        self, name: str, settings: ModelSettings, report: Report, claim: ClaimMemory | None = None
    ) -> LoadedModel:
        """Builds, verifies and warms it up."""
        report("read", 0.4)
        with self._building:
            module = TINY[settings.source.removeprefix("tiny:")]()
        device = self._devices.open(self._devices.candidates(settings.device)[0])
        revision = weights_digest(module)
        moved = cast("PreTrainedModel", module.to(device.torch))  # pyright: ignore[reportArgumentType]
        return prepare(name, revision, moved, tiny_tokenizer, device, report)


class OneAnalyzer:
    """Finds one analyzer, whatever it is asked for."""

    def __init__(self) -> None:
        self.analyzers: dict[str, Analyzer] = {}

    def resolve(self, name: str) -> RegisteredAnalyzer:
        """The analyzer under test."""
        return RegisteredAnalyzer(self.analyzers[name], name, "under-test", "0")


class TinyEngine:
    """An :class:`lensd_api.testing.Engine`: executor, batchers and models as in the daemon.

    What analyses store goes to ``state_dir``, by default a folder that :meth:`close` removes. ``device`` is
    what a model's settings take. Raises LoadFailed when it is not there.
    """

    def __init__(
        self,
        models: Sequence[str] = MODELS,
        state_dir: Path | None = None,
        limits: LimitSettings | None = None,
        device: str = "cpu",
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tiny-engine", daemon=True)
        self._thread.start()
        self._state = tempfile.TemporaryDirectory(prefix="lensd-tiny-")
        turn, limits = Turn(), limits or LimitSettings()
        self._lookup = OneAnalyzer()
        configured = {name: ModelSettings(source=f"tiny:{name}", device=device) for name in models}
        self.residency = Residency(configured, TinyLoader(turn), limits)
        self.executor = LocalExecutor(
            self._lookup,
            self.residency,
            limits,
            storage=Storage.under(state_dir or Path(self._state.name), limits),
            cpu_turn=turn,
        )
        try:
            for name in models:
                self._wait(self._load(name))
        except BaseException:
            self.close()
            raise

    @property
    def models(self) -> Sequence[str]:
        """See :class:`lensd_api.testing.Engine`."""
        return self.residency.names

    def card(self, model: str) -> ModelCard:
        """See :class:`lensd_api.testing.Engine`."""
        resident = self.residency.resident(model)
        assert resident is not None
        return resident.loaded.card

    def run(self, analyzer: Analyzer, job: Job) -> Outcome:
        """See :class:`lensd_api.testing.Engine`."""
        return self.run_together(analyzer, [job])[0]

    def run_together(self, analyzer: Analyzer, jobs: Sequence[Job]) -> list[Outcome]:
        """See :class:`lensd_api.testing.Engine`."""

        async def all_of_them() -> list[Outcome]:
            return await asyncio.gather(*(self._outcome(analyzer, job) for job in jobs))

        return self._wait(all_of_them())

    def run_and_cancel(self, analyzer: Analyzer, job: Job, *, after_results: int) -> Residue:
        """See :class:`lensd_api.testing.Engine`."""
        before = self._fingerprint(job.model)
        self._wait(self._cancelled(analyzer, job, after_results))
        resident = self.residency.resident(job.model) if job.model else None
        if resident is not None:
            # A forward that runs cannot be stopped; what it leaves behind is seen once it is over.
            resident.batcher.settle()
        after = self._fingerprint(job.model)
        return Residue(
            hooks=after[0] - before[0],
            leases=self.residency.leases(job.model) if job.model else 0,
            queued_rows=0 if resident is None else resident.batcher.waiting()[0],
            running=len(self.executor.running()),
            model_changed=after[1] != before[1],
        )

    def close(self) -> None:
        """Ends every thread of the engine."""
        self.executor.close()
        self.residency.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._state.cleanup()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _load(self, name: str) -> None:
        async for _ in self.residency.load(name):
            pass

    def _start(self, analyzer: Analyzer, job: Job) -> AsyncGenerator[AnalysisEvent, None]:
        self._lookup.analyzers[analyzer.name] = analyzer
        return self.executor.run(
            AnalysisRequest(
                request_id=f"job-{id(job):x}",
                analyzer=analyzer.name,
                model=job.model,
                params=job.params,
                tensors=job.tensors,
            )
        )

    async def _outcome(self, analyzer: Analyzer, job: Job) -> Outcome:
        results: list[Result] = []
        warnings: list[tuple[str, str]] = []
        error: LensdError | None = None
        tokens = 0
        try:
            async with aclosing(self._start(analyzer, job)) as events:
                async for event in events:
                    if isinstance(event, Found):
                        results.append(event.result)
                    elif isinstance(event, Completed):
                        tokens = event.usage.tokens
                    elif isinstance(event, Warned):
                        warnings.append((event.reason, event.message))
        except LensdError as refused:
            error = refused
        return Outcome(tuple(results), tuple(warnings), error, tokens)

    async def _cancelled(self, analyzer: Analyzer, job: Job, after_results: int) -> None:
        found = 0
        async with aclosing(self._start(analyzer, job)) as events:
            async for event in events:
                found += isinstance(event, Found)
                if found >= after_results:
                    break
        await self.executor.settled()

    def _fingerprint(self, model: str) -> tuple[int, str]:
        resident = self.residency.resident(model) if model else None
        if resident is None:
            return 0, ""
        module = resident.loaded.model.module
        return hook_count(module), weights_digest(module)


def hook_count(module: torch.nn.Module) -> int:
    """Forward hooks on all modules of ``module``."""
    return sum(len(inner._forward_hooks) + len(inner._forward_pre_hooks) for inner in module.modules())


def weights_digest(module: torch.nn.Module) -> str:
    """SHA-256 over every parameter and buffer."""
    total = hashlib.sha256()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _check(engine: TinyEngine) -> Engine:
    return engine  # so that the type checker compares the two
