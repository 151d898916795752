"""How models come into memory and leave it: each load has a thread of its own.

Invariant: however a load ends, its reservation is a model's or over, and everybody who waited has a lease
or an error.
"""

import itertools
import threading
import weakref
from collections.abc import Callable
from typing import Protocol

import structlog

from lensd_api import DeviceLost, Draining, LensdError, LoadFailed
from lensd_server.engine.batching.batcher import Batcher, BatchLimits
from lensd_server.engine.device import Device, device_lost, is_beyond_repair, is_out_of_memory
from lensd_server.engine.events import ModelState
from lensd_server.engine.faults import internal_failure
from lensd_server.engine.models.devices import OffersDevices
from lensd_server.engine.models.loading import ClaimMemory, LoadedModel, Report
from lensd_server.engine.models.memory_line import MemoryLine
from lensd_server.engine.models.slot import ResidentModel, Shelf, Slot
from lensd_server.engine.observers import Observers
from lensd_server.settings import LimitSettings, ModelSettings

#: After n failures in a row a model is not tried again by itself for 2^n seconds, at most this long.
MAX_BACKOFF_S = 300.0

#: How long :meth:`Loads.close` waits for a load that is under way.
LOAD_END_S = 5.0

_log = structlog.get_logger("lensd.models")


class LoadsModels(Protocol):
    """What residency asks of a loader."""

    def load(self, name: str, settings: ModelSettings, report: Report, claim: ClaimMemory) -> LoadedModel:
        """Blocks until the model is ready to serve. Calls ``claim`` before it fills memory."""
        ...


class _Unwanted(Exception):
    """Nobody waits for the load any more. Raised where it can be given up."""


class Loads:
    """Brings models into memory and takes them out."""

    def __init__(
        self,
        shelf: Shelf,
        loader: LoadsModels,
        devices: OffersDevices,
        limits: LimitSettings,
        observers: Observers,
        clock: Callable[[], float],
        when_lost: Callable[[str], None],
        when_damaged: Callable[[str, str], None],
    ) -> None:
        self._shelf, self._loader, self._devices = shelf, loader, devices
        self._limits, self._observers, self._clock = limits, observers, clock
        self._when_lost, self._when_damaged = when_lost, when_damaged
        self.line = MemoryLine(shelf, devices, limits, observers, clock, self.free)
        self._orders = itertools.count(1)
        self._closed = False

    def ask(self, slot: Slot) -> None:
        """Somebody wants ``slot``: it gets a place in the line, and a thread where it has none. Locked."""
        slot.order = slot.order or next(self._orders)
        if slot.state in (ModelState.COLD, ModelState.FAILED) and not self._closed and slot.resident is None:
            slot.state, slot.problem, slot.error = ModelState.LOADING, "", None
            slot.stage, slot.fraction, slot.detail = "fetch", 0.0, ""
            slot.loading = threading.Thread(
                target=self._load, args=(slot,), name=f"lensd-load-{slot.name}", daemon=True
            )
            slot.loading.start()

    def free(self, slot: Slot, mine: list[ResidentModel]) -> None:
        """Frees a model that :meth:`Slot.take_out` took off ``slot``. ``mine`` holds the last reference to it."""
        mine[0].batcher.close()
        device = mine.pop().loaded.device
        device.release()
        with self._shelf.changed:
            self.line.freed_at = self._clock()
            slot.state, slot.yields_to, slot.detail = ModelState.COLD, "", ""
            if slot.wanted:
                self.ask(slot)
        self._shelf.notify(slot)

    def free_unheld(self, slot: Slot) -> None:
        """Begins to free the model of ``slot`` unless somebody holds it. Locked."""
        if slot.leases == 0:
            # A thread of its own: neither a caller that goes away nor the device's must leave it half freed.
            mine = slot.take_out(self._clock())
            threading.Thread(target=self.free, args=(slot, mine), name=f"lensd-free-{slot.name}").start()

    def close(self) -> None:
        """Ends loads and frees what is resident; for shutting down, when no analysis is left.

        A load under way is waited for a little: a thread inside torch must not outlive the interpreter.
        """
        with self._shelf.changed:
            self._closed = True
            self._shelf.changed.notify_all()
        for slot in self._shelf.slots.values():
            if slot.loading is not None:
                slot.loading.join(LOAD_END_S)
            with self._shelf.changed:
                mine = [] if slot.resident is None else slot.take_out(self._clock())
            if mine:
                self.free(slot, mine)

    # On the thread of a load

    def _load(self, slot: Slot) -> None:
        started, waited = self._clock(), 0.0

        def report(stage: str, fraction: float) -> None:
            with self._shelf.changed:
                self._check_wanted(slot)
                slot.stage, slot.fraction, slot.detail = stage, fraction, ""
            self._shelf.notify(slot)

        def claim(need: Callable[[Device], int]) -> Device:
            nonlocal waited
            since = self._clock()
            opened = {
                name: self._devices.open(name) for name in self._devices.candidates(slot.settings.device)
            }
            needs = {name: need(device) for name, device in opened.items()}
            place = self.line.wait(slot, needs, lambda: self._check_wanted(slot))
            waited = self._clock() - since
            return opened[place]

        error: LensdError | None = None
        model: ResidentModel | None = None
        outcome = "ok"
        try:
            loaded = self._loader.load(slot.name, slot.settings, report, claim)
            model = ResidentModel(loaded, self._batcher(slot, loaded))
        except _Unwanted:
            outcome = "cancelled"
        except BaseException as fault:  # transformers, a plugin's source, the disk: a load fails alone
            outcome, error = "failed", _explain(slot, fault)
        # The fault is forgotten by now, and with it the frames that held what was half loaded.
        took = self._clock() - started - waited
        if model is not None:
            self._serve(slot, model, took)
        else:
            self._give_up(slot, error)
        self._observers.load_finished(slot.name, outcome, took)
        self._shelf.notify(slot)

    def _check_wanted(self, slot: Slot) -> None:
        if self._closed or slot.unloading or not slot.wanted:
            raise _Unwanted

    def _batcher(self, slot: Slot, loaded: LoadedModel) -> Batcher:
        own = slot.settings.max_cache_bytes
        limits = BatchLimits(
            max_tokens=slot.settings.max_batch_tokens or loaded.price.saturation(*loaded.device.batch_tokens),
            price=loaded.price,
            max_rows=self._limits.max_queued_rows,
            caller_share=self._limits.caller_share,
            max_cache_bytes=loaded.device.cache_bytes if own is None else own,
            longest_wait_s=loaded.device.longest_wait * loaded.price.seconds(1),
        )
        return Batcher(
            slot.name,
            loaded.model,
            loaded.device,
            limits,
            observers=self._observers,
            when_lost=lambda lost: self._lose(slot, lost),
            when_damaged=lambda damage: self._spoil(slot, damage.metadata["analyzer"]),
        )

    def _lose(self, slot: Slot, lost: DeviceLost) -> None:
        """The device is beyond repair: nobody gets the model any more, and the process must end."""
        with self._shelf.changed:
            self._fail(slot, lost)
        self._shelf.notify(slot)
        self._when_lost(f"{lost.metadata['device']} failed under model {slot.name}")

    def _spoil(self, slot: Slot, analyzer: str) -> None:
        """An analyzer wrote into the weights: nobody gets them any more, and they go once nobody holds them."""
        _log.error("model damaged", model=slot.name, analyzer=analyzer)
        # First, so that it is not asked again when the model is back.
        self._when_damaged(analyzer, slot.name)
        with self._shelf.changed:
            if slot.resident is not None:
                slot.state, slot.yields_to = ModelState.DRAINING, ""
                slot.damage = (
                    f"analyzer {analyzer} wrote into its weights: it is loaded anew once nobody holds it"
                )
                slot.ordered = slot.ordered or (slot.settings.preload and not slot.unloading)
                slot.stays_until = self._clock()
                self.free_unheld(slot)
        self._shelf.notify(slot)

    def _serve(self, slot: Slot, model: ResidentModel, took: float) -> None:
        loaded = model.loaded
        minimum = self._limits.min_residency_s
        with self._shelf.changed:
            now = self._clock()
            self._settle(slot, loaded)
            slot.resident, slot.state, slot.failures = model, ModelState.RESIDENT, 0
            slot.stage, slot.fraction, slot.detail = "ready", 1.0, ""
            slot.loads += 1
            slot.load_s, slot.last_used = took, now
            slot.stays_until = now + (took if minimum is None else minimum)
            slot.grant(now)

    def _settle(self, slot: Slot, loaded: LoadedModel) -> None:
        """Corrects the prediction by what the model really takes, until its weights are gone. Locked."""
        size = loaded.resident_bytes + loaded.working_bytes
        reservation = slot.reservation or self.line.room.reserve(loaded.device.name, size)
        predicted, reservation.size, reservation.loaded = reservation.size, size, True
        slot.reservation = reservation
        weakref.finalize(loaded.model.module, reservation.end).atexit = False
        left = self.line.room.left(reservation.device)
        if left is not None and left < 0:
            _log.warning(
                "models take more memory than was predicted",
                model=slot.name,
                device=reservation.device,
                predicted_bytes=predicted,
                bytes=size,
                over_budget_bytes=-left,
            )

    def _give_up(self, slot: Slot, error: LensdError | None) -> None:
        """The load failed, or was not wanted any more when ``error`` is ``None``."""
        with self._shelf.changed:
            reservation, slot.reservation = slot.reservation, None
        if reservation is not None:
            self._devices.open(reservation.device).release()
            reservation.end()
        with self._shelf.changed:
            slot.stage, slot.detail = "", ""
            if error is None:
                slot.state = ModelState.COLD
                if self._closed or slot.unloading:
                    slot.refuse(
                        Draining(f"model {slot.name} was unloaded while it loaded", retry_after_s=1.0)
                    )
                elif slot.wanted:  # somebody came after it was given up
                    slot.order = 0
                    self.ask(slot)
                else:
                    slot.order = 0
                return
            self._fail(slot, error)
        if isinstance(error, DeviceLost):
            self._when_lost(f"{error.metadata['device']} failed while model {slot.name} was loaded")

    def _fail(self, slot: Slot, error: LensdError) -> None:
        """Says why it does not serve, and when it may be tried again. Locked."""
        slot.failures += 1
        slot.retry_at = self._clock() + min(MAX_BACKOFF_S, 2.0**slot.failures)
        if isinstance(error, DeviceLost):
            slot.retry_at = float("inf")
        slot.state, slot.problem, slot.error = ModelState.FAILED, error.message, again(error)
        slot.refuse(error)


def _explain(slot: Slot, fault: BaseException) -> LensdError:
    """Why a load failed, without what the fault holds on to."""
    if isinstance(fault, LensdError):
        return again(fault)
    if is_beyond_repair(fault):
        return device_lost("the device" if slot.reservation is None else slot.reservation.device)
    if is_out_of_memory(fault):
        device = "the device" if slot.reservation is None else slot.reservation.device
        return LoadFailed(
            f"{device} ran out of memory while model {slot.name} was loaded; something else uses it, or "
            "limits.memory_bytes is more than there is",
            reason="DEVICE_OOM",
            retry_after_s=30.0,
        )
    hidden = internal_failure(fault, f"loading model {slot.name}")
    return LoadFailed(hidden.message, metadata=hidden.metadata)


def again(error: LensdError, retry_after_s: float | None = None) -> LensdError:
    """A fresh copy of why a load failed: several callers may raise it at the same time."""
    kind = type(error) if type(error).__init__ is LensdError.__init__ else LoadFailed
    return kind(
        error.message,
        reason=error.reason,
        metadata=error.metadata,
        retry_after_s=retry_after_s if retry_after_s is not None else error.retry_after_s,
    )
