"""Which models are in memory, who holds them, and how they come and go.

``COLD -> LOADING -> RESIDENT -> DRAINING -> COLD``, and ``FAILED`` with a back-off. Invariant: a model
with a lease is never freed. Safe to use from any thread and any event loop.
"""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from lensd_api import Draining, LensdError, LoadFailed, UnknownModel
from lensd_server.engine.batching.batcher import Batcher, BatchLimits
from lensd_server.engine.events import LoadStep, ModelState, ModelStatus
from lensd_server.engine.faults import internal_failure
from lensd_server.engine.models.loading import LoadedModel, Report
from lensd_server.engine.observers import Observers
from lensd_server.engine.wakeup import Wakeup
from lensd_server.settings import LimitSettings, ModelSettings

#: After n failures in a row a model is not tried again by itself for 2^n seconds, at most this long.
MAX_BACKOFF_S = 300.0

#: How long :meth:`Residency.close` waits for a load that is under way.
LOAD_END_S = 5.0


class LoadsModels(Protocol):
    """What residency asks of a loader."""

    def load(self, name: str, settings: ModelSettings, report: Report) -> LoadedModel:
        """Blocks until the model is ready to serve."""
        ...


@dataclass(frozen=True, slots=True)
class ResidentModel:
    """A model in memory with its device thread."""

    loaded: LoadedModel
    batcher: Batcher


@dataclass(slots=True, eq=False)
class _Slot:
    """Everything about one configured model; guarded by the residency's lock."""

    name: str
    settings: ModelSettings
    state: ModelState = ModelState.COLD
    resident: ResidentModel | None = None
    leases: int = 0
    problem: str = ""
    error: LensdError | None = None
    failures: int = 0
    retry_at: float = 0.0
    loading: threading.Thread | None = None
    stage: str = ""
    fraction: float = 0.0
    #: Appended to and removed from on their own loops, copied before use.
    watchers: list[Wakeup] = field(default_factory=list[Wakeup])


class Residency:
    """The configured models. Loads run on threads of their own, one at a time a model."""

    def __init__(
        self,
        models: Mapping[str, ModelSettings],
        loader: LoadsModels,
        limits: LimitSettings | None = None,
        *,
        observers: Observers | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loader = loader
        self._limits = limits or LimitSettings()
        self._observers = observers or Observers()
        self._clock = clock
        self._lock = threading.Lock()
        self._slots = {name: _Slot(name, settings) for name, settings in sorted(models.items())}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the configured models, sorted."""
        return tuple(self._slots)

    def statuses(self) -> list[ModelStatus]:
        """Every configured model, sorted by name."""
        return [self.status(name) for name in self._slots]

    def status(self, name: str) -> ModelStatus:
        """One configured model. Raises UnknownModel."""
        slot = self._slot(name)
        with self._lock:
            return _describe(slot)

    def resident(self, name: str) -> ResidentModel | None:
        """The model if it is in memory. Not a lease: for looking, not for running. Raises UnknownModel."""
        return self._slot(name).resident

    async def load(self, name: str) -> AsyncGenerator[LoadStep, None]:
        """Makes ``name`` resident and tells how far that has come; ends when it is.

        Joins a load that is under way. Leaving early does not stop the load. Raises UnknownModel,
        Draining while it is being unloaded, LoadFailed.
        """
        slot = self._slot(name)
        wakeup = self._watch(slot)
        try:
            self._start_load(slot)
            while True:
                with self._lock:
                    step = LoadStep(_describe(slot), slot.stage, slot.fraction)
                    error = slot.error
                if error is not None:
                    raise _again(error)
                yield step
                if step.status.state is not ModelState.LOADING:
                    return
                await wakeup.wait()
        finally:
            slot.watchers.remove(wakeup)

    async def unload(self, name: str) -> ModelStatus:
        """Waits until nobody holds ``name``, frees it, and answers how it is then.

        New leases are refused meanwhile; a load under way is waited for. Raises UnknownModel.
        """
        slot = self._slot(name)
        wakeup = self._watch(slot)
        # A list, so that whoever frees the model can take the last reference to it.
        mine: list[ResidentModel] = []
        try:
            while not mine:
                with self._lock:
                    if slot.state in (ModelState.COLD, ModelState.FAILED):
                        slot.state, slot.problem, slot.error, slot.failures = ModelState.COLD, "", None, 0
                        break
                    if slot.state is ModelState.RESIDENT:
                        slot.state = ModelState.DRAINING
                    if slot.state is ModelState.DRAINING and slot.leases == 0 and slot.resident is not None:
                        mine.append(slot.resident)
                        slot.resident = None
                self._notify(slot)
                if not mine:
                    await wakeup.wait()
            if mine:
                await asyncio.to_thread(self._free, slot, mine)
        except BaseException:
            self._resume(slot)
            raise
        finally:
            slot.watchers.remove(wakeup)
        return self.status(name)

    async def watch(self) -> AsyncGenerator[ModelStatus, None]:
        """The state of every model, then each change; of several quick ones perhaps only the last."""
        wakeup = Wakeup()
        for slot in self._slots.values():
            slot.watchers.append(wakeup)
        seen: dict[str, tuple[object, ...]] = {}
        try:
            while True:
                for status in self.statuses():
                    known = (status.state, status.problem, status.revision)
                    if seen.get(status.name) != known:
                        seen[status.name] = known
                        yield status
                await wakeup.wait()
        finally:
            for slot in self._slots.values():
                slot.watchers.remove(wakeup)

    @asynccontextmanager
    async def lease(
        self, name: str, on_step: Callable[[LoadStep], None] | None = None
    ) -> AsyncIterator[ResidentModel]:
        """Holds ``name`` in memory, loading it first where needed.

        Raises UnknownModel, Draining, LoadFailed (at once while the back-off after a failure lasts).
        """
        slot = self._slot(name)
        model = self._take(slot)
        while model is None:
            with self._lock:
                self._refuse_if_failed(slot)
            async with aclosing(self.load(name)) as steps:
                async for step in steps:
                    if on_step is not None and step.status.state is ModelState.LOADING:
                        on_step(step)
            model = self._take(slot)
        try:
            yield model
        finally:
            with self._lock:
                slot.leases -= 1
            self._notify(slot)

    def leases(self, name: str) -> int:
        """How many analyses hold ``name`` now. Raises UnknownModel."""
        return self._slot(name).leases

    def close(self) -> None:
        """Ends every device thread; for shutting down, when no analysis is left.

        A load under way is waited for a little: a thread inside torch must not outlive the interpreter.
        """
        for slot in self._slots.values():
            if slot.loading is not None:
                slot.loading.join(LOAD_END_S)
            with self._lock:
                mine = [] if slot.resident is None else [slot.resident]
                slot.resident = None
            if mine:
                self._free(slot, mine)

    def _slot(self, name: str) -> _Slot:
        slot = self._slots.get(name)
        if slot is None:
            known = ", ".join(self._slots) or "none"
            raise UnknownModel(f"no model {name!r} is configured; configured are: {known}")
        return slot

    def _take(self, slot: _Slot) -> ResidentModel | None:
        with self._lock:
            if slot.state is ModelState.DRAINING:
                raise Draining(f"model {slot.name} is being unloaded; try again", retry_after_s=1.0)
            if slot.state is not ModelState.RESIDENT:
                return None
            slot.leases += 1
            return slot.resident

    def _refuse_if_failed(self, slot: _Slot) -> None:
        remaining = slot.retry_at - self._clock()
        if slot.state is ModelState.FAILED and slot.error is not None and remaining > 0:
            raise _again(slot.error, remaining)

    def _start_load(self, slot: _Slot) -> None:
        with self._lock:
            if slot.state is ModelState.DRAINING:
                raise Draining(f"model {slot.name} is being unloaded; try again", retry_after_s=1.0)
            if slot.state in (ModelState.LOADING, ModelState.RESIDENT):
                return
            slot.state, slot.problem, slot.error = ModelState.LOADING, "", None
            slot.stage, slot.fraction = "fetch", 0.0
            slot.loading = threading.Thread(
                target=self._load, args=(slot,), name=f"lensd-load-{slot.name}", daemon=True
            )
            slot.loading.start()
        self._notify(slot)

    def _load(self, slot: _Slot) -> None:
        started = self._clock()

        def report(stage: str, fraction: float) -> None:
            with self._lock:
                slot.stage, slot.fraction = stage, fraction
            self._notify(slot)

        try:
            loaded = self._loader.load(slot.name, slot.settings, report)
            limits = BatchLimits(
                max_tokens=slot.settings.max_batch_tokens
                or loaded.price.saturation(*loaded.device.batch_tokens),
                price=loaded.price,
                max_rows=self._limits.max_queued_rows,
                caller_share=self._limits.caller_share,
            )
            batcher = Batcher(slot.name, loaded.model, loaded.device, limits, observers=self._observers)
        except BaseException as error:  # transformers, a plugin's source, the disk: a load fails alone
            self._failed(slot, error)
            outcome = "failed"
        else:
            with self._lock:
                slot.resident = ResidentModel(loaded, batcher)
                slot.state, slot.failures = ModelState.RESIDENT, 0
                slot.stage, slot.fraction = "ready", 1.0
            outcome = "ok"
        self._observers.load_finished(slot.name, outcome, self._clock() - started)
        self._notify(slot)

    def _failed(self, slot: _Slot, error: BaseException) -> None:
        if not isinstance(error, LensdError):
            hidden = internal_failure(error, f"loading model {slot.name}")
            error = LoadFailed(hidden.message, metadata=hidden.metadata)
        with self._lock:
            slot.failures += 1
            slot.retry_at = self._clock() + min(MAX_BACKOFF_S, 2.0**slot.failures)
            slot.state, slot.problem, slot.error = ModelState.FAILED, error.message, error

    def _free(self, slot: _Slot, mine: list[ResidentModel]) -> None:
        mine[0].batcher.close()
        device = mine.pop().loaded.device
        device.release()
        with self._lock:
            slot.state = ModelState.COLD
        self._notify(slot)

    def _resume(self, slot: _Slot) -> None:
        """An unload was given up before the model was free: it serves again."""
        with self._lock:
            if slot.state is ModelState.DRAINING and slot.resident is not None:
                slot.state = ModelState.RESIDENT
        self._notify(slot)

    def _watch(self, slot: _Slot) -> Wakeup:
        wakeup = Wakeup()
        slot.watchers.append(wakeup)
        return wakeup

    @staticmethod
    def _notify(slot: _Slot) -> None:
        for wakeup in tuple(slot.watchers):
            wakeup.set()


def _again(error: LensdError, retry_after_s: float | None = None) -> LensdError:
    """A fresh copy of why a load failed: several callers may raise it at the same time."""
    return LoadFailed(
        error.message,
        reason=error.reason,
        metadata=error.metadata,
        retry_after_s=retry_after_s if retry_after_s is not None else error.retry_after_s,
    )


def _describe(slot: _Slot) -> ModelStatus:
    resident = slot.resident
    if resident is None:
        return ModelStatus(
            name=slot.name,
            source=slot.settings.source,
            state=slot.state,
            leases=slot.leases,
            pinned=slot.settings.pin,
            problem=slot.problem,
        )
    loaded = resident.loaded
    rows, tokens = resident.batcher.waiting()
    return ModelStatus(
        name=slot.name,
        source=slot.settings.source,
        state=slot.state,
        revision=loaded.card.revision,
        device=loaded.device.name,
        dtype=loaded.card.dtype,
        resident_bytes=loaded.resident_bytes,
        parameters=loaded.parameters,
        leases=slot.leases,
        pinned=slot.settings.pin,
        problem=slot.problem,
        anatomy=loaded.card.anatomy,
        queued_rows=rows,
        queued_tokens=tokens,
    )
