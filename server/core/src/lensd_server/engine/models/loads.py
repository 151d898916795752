"""How replicas of models come into memory and leave it: each load has a thread of its own.

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
from lensd_server.engine.device import Device
from lensd_server.engine.device_faults import device_lost, is_out_of_memory
from lensd_server.engine.events import ModelState
from lensd_server.engine.faults import internal_failure
from lensd_server.engine.models.claims import Claim
from lensd_server.engine.models.devices import OffersDevices
from lensd_server.engine.models.loading import ClaimMemory, LoadedModel, Report
from lensd_server.engine.models.memory_line import MemoryLine, NoRoomForAnother, Unwanted
from lensd_server.engine.models.shelf import ConfiguredModel, Shelf
from lensd_server.engine.models.sizing import cache_bytes
from lensd_server.engine.models.slot import ResidentModel, Slot
from lensd_server.engine.observers import Observers
from lensd_server.settings import LimitSettings, ModelSettings

#: After n failures in a row a model is not tried again by itself for 2^n seconds, at most this long.
MAX_BACKOFF_S = 300.0

#: How long no room is looked for again after one more replica found none.
ROOM_AGAIN_S = 30.0

#: How long :meth:`Loads.close` waits for a load that is under way.
LOAD_END_S = 5.0

_log = structlog.get_logger("lensd.models")


class LoadsModels(Protocol):
    """What residency asks of a loader."""

    def load(self, name: str, settings: ModelSettings, report: Report, claim: ClaimMemory) -> LoadedModel:
        """Blocks until the model is ready to serve. Calls ``claim`` before it fills memory."""
        ...


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

    def want(self, model: ConfiguredModel) -> None:
        """Somebody waits for ``model``: its best replica gets a place in the line. Locked."""
        self.ask(model.best)

    def expand(self, model: ConfiguredModel) -> None:
        """All replicas that serve are in use: one more is loaded if it is configured and has room. Locked."""
        slot = model.spare(self._clock())
        if slot is not None:
            slot.ordered = True
            self.ask(slot)

    def ask(self, slot: Slot) -> None:
        """Somebody wants ``slot``: it gets a place in the line, and a thread where it has none. Locked."""
        slot.order = slot.order or next(self._orders)
        if slot.state in (ModelState.COLD, ModelState.FAILED) and not self._closed and slot.resident is None:
            slot.state, slot.problem, slot.error = ModelState.LOADING, "", None
            slot.stage, slot.fraction, slot.detail = "fetch", 0.0, ""
            slot.outlasts, slot.read_at = False, None
            slot.loading = threading.Thread(
                target=self._load, args=(slot,), name=f"lensd-load-{slot.name}", daemon=True
            )
            slot.loading.start()

    def free(self, slot: Slot, mine: list[ResidentModel]) -> None:
        """Frees a model that :meth:`Slot.take_out` took off ``slot``. ``mine`` holds the last reference to it."""
        mine[0].batcher.close()
        device = mine.pop().loaded.device
        device.leave()
        with self._shelf.changed:
            self.line.freed_at = self._clock()
            slot.state, slot.yields_to, slot.detail = ModelState.COLD, None, ""
            self._ask_again(slot)
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
        for slot in self._shelf.slots:
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
                if stage == "read":
                    slot.read_at = self._clock()
            self._shelf.notify(slot)

        def claim(need: Callable[[Device], int]) -> Device:
            nonlocal waited
            since = self._clock()
            opened = {
                name: self._devices.open(name) for name in self._devices.candidates(slot.settings.device)
            }
            with self._shelf.changed:
                caches = {name: self._cache_bytes(slot, device) for name, device in opened.items()}
            needs = {name: need(device) + caches[name] for name, device in opened.items()}
            place = self.line.wait(Claim(slot, needs, caches), lambda: self._check_wanted(slot))
            waited = self._clock() - since
            return opened[place]

        error: LensdError | None = None
        model: ResidentModel | None = None
        outcome, no_room = "ok", ""
        try:
            loaded = self._loader.load(slot.name, slot.settings, report, claim)
            self._check_same(slot, loaded)
            model = ResidentModel(loaded, self._batcher(slot, loaded))
        except Unwanted:
            outcome = "cancelled"
        except NoRoomForAnother as lack:
            outcome, no_room = "cancelled", str(lack)
        except BaseException as fault:  # transformers, a plugin's source, the disk: a load fails alone
            outcome, error = "failed", self._explain(slot, fault)
        # The fault is forgotten by now, and with it the frames that held what was half loaded.
        took = self._clock() - started - waited
        if model is not None:
            self._serve(slot, model, took)
        elif no_room:
            self._forgo(slot, no_room)
        else:
            self._give_up(slot, error)
        self._observers.load_finished(slot.name, outcome, took)
        self._shelf.notify(slot)

    def _check_wanted(self, slot: Slot) -> None:
        if self._closed or slot.unloading or not (slot.wanted or slot.outlasts):
            raise Unwanted

    def _check_same(self, slot: Slot, loaded: LoadedModel) -> None:
        """Raises LoadFailed when the replicas would not be the same model."""
        with self._shelf.changed:
            residents = self._shelf.model(slot.name).residents
            if any(other.loaded.card.revision != loaded.card.revision for other in residents):
                raise LoadFailed(
                    f"the checkpoint of model {slot.name} was changed since another replica of it was loaded; "
                    "unload the model and load it again",
                    reason="CHECKPOINT_CHANGED",
                )

    def _batcher(self, slot: Slot, loaded: LoadedModel) -> Batcher:
        with self._shelf.changed:
            max_cache_bytes = self._cache_bytes(slot, loaded.device)
        limits = BatchLimits(
            max_tokens=loaded.batch_tokens(slot.settings),
            price=loaded.price,
            max_rows=self._limits.max_queued_rows,
            caller_share=self._limits.caller_share,
            max_cache_bytes=max_cache_bytes,
            longest_wait_s=loaded.device.longest_wait * loaded.price.seconds(1),
        )
        loaded.device.when_lost = lambda lost: self._lose(slot, lost)
        return Batcher(
            slot.name,
            loaded.model,
            loaded.device,
            limits,
            observers=self._observers,
            when_lost=loaded.device.when_lost,
            when_damaged=lambda damage: self._spoil(slot, damage.metadata["analyzer"]),
        )

    def _cache_bytes(self, slot: Slot, device: Device) -> int:
        """Most bytes of keys and values that the model keeps on ``device``. Locked."""
        budget = self.line.room.budget(device.name)
        return cache_bytes(slot.settings.max_cache_bytes, device.cache_bytes, budget)

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
                slot.state, slot.yields_to = ModelState.DRAINING, None
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
            slot.load_s = took if slot.read_at is None else now - slot.read_at
            slot.read_at, slot.last_used = None, now
            slot.stays_until = now + (took if minimum is None else minimum)
            slot.grant(now)

    def _settle(self, slot: Slot, loaded: LoadedModel) -> None:
        """Corrects the prediction by what the model really takes, until its weights are gone. Locked."""
        size = loaded.resident_bytes + loaded.working_bytes + self._cache_bytes(slot, loaded.device)
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
            if not isinstance(error, DeviceLost):  # nothing can be given back to it
                self._devices.open(reservation.device).release()
            reservation.end()
        with self._shelf.changed:
            slot.stage, slot.detail = "", ""
            if error is None:
                slot.state, slot.order = ModelState.COLD, 0
                if self._closed or slot.unloading:
                    slot.refuse(
                        Draining(f"model {slot.name} was unloaded while it loaded", retry_after_s=1.0)
                    )
                else:  # somebody may have come after it was given up
                    self._ask_again(slot)
                return
            self._fail(slot, error)
        if isinstance(error, DeviceLost):
            self._when_lost(f"{error.metadata['device']} failed while model {slot.name} was loaded")

    def _forgo(self, slot: Slot, lack: str) -> None:
        """There was no room for one more replica: the others do without it for a while."""
        _log.info("no room for one more replica", model=slot.name, problem=lack)
        with self._shelf.changed:
            slot.state, slot.stage, slot.detail, slot.order = ModelState.COLD, "", "", 0
            if self._shelf.model(slot.name).is_hopeless and slot.wanted:
                self.ask(slot)  # the others are gone meanwhile: it is the first one now
            else:
                slot.ordered, slot.problem, slot.retry_at = False, lack, self._clock() + ROOM_AGAIN_S

    def _ask_again(self, slot: Slot) -> None:
        """Nothing is in ``slot`` any more: it is asked for if it was ordered, or its model is waited for. Locked."""
        if slot.ordered:
            self.ask(slot)
        elif slot.waiters:
            self.want(self._shelf.model(slot.name))
        else:
            slot.order = 0

    def _fail(self, slot: Slot, error: LensdError) -> None:
        """Says why it does not serve, and when it may be tried again. Locked.

        Unless other replicas serve, or will, that goes for all of them: they would fail alike.
        """
        self._mark_failed(slot, error)
        model = self._shelf.model(slot.name)
        if model.is_hopeless:
            for other in model.slots:
                if other.state is ModelState.COLD:
                    self._mark_failed(other, error)
            model.refuse(error)

    def _explain(self, slot: Slot, fault: BaseException) -> LensdError:
        """Why a load failed, without what the fault holds on to."""
        if isinstance(fault, LensdError):
            return again(fault)
        place = None if slot.reservation is None else slot.reservation.device
        if place is not None and self._devices.open(place).is_lost(fault):
            return device_lost(place)
        if is_out_of_memory(fault):
            return LoadFailed(
                f"{place or 'the machine'} ran out of memory while model {slot.name} was loaded; something else uses "
                "it, or limits.memory_bytes is more than there is",
                reason="DEVICE_OOM",
                retry_after_s=30.0,
            )
        hidden = internal_failure(fault, f"loading model {slot.name}")
        return LoadFailed(hidden.message, metadata=hidden.metadata)

    def _mark_failed(self, slot: Slot, error: LensdError) -> None:
        slot.failures += 1
        slot.retry_at = self._clock() + min(MAX_BACKOFF_S, 2.0**slot.failures)
        if isinstance(error, DeviceLost):
            slot.retry_at = float("inf")
        slot.state, slot.problem, slot.error = ModelState.FAILED, error.message, again(error)
        slot.order, slot.ordered = 0, False


def again(error: LensdError, retry_after_s: float | None = None) -> LensdError:
    """A fresh copy of why a load failed: several callers may raise it at the same time."""
    kind = type(error) if type(error).__init__ is LensdError.__init__ else LoadFailed
    return kind(
        error.message,
        reason=error.reason,
        metadata=error.metadata,
        retry_after_s=retry_after_s if retry_after_s is not None else error.retry_after_s,
    )
