"""Which models are in memory, who holds them, and how they come and go.

A model has one replica, or as many as are configured, each in a life of its own:
``COLD -> LOADING -> RESIDENT -> DRAINING -> COLD``, and ``FAILED`` with a back-off. Invariants: a model
that is held is never freed, and what is in memory stays within each device's budget. Safe to use from
any thread and any event loop.
"""

import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

from lensd_api import DeadlineExceeded, Draining, Exhausted, LoadFailed
from lensd_server.engine.device import Devices
from lensd_server.engine.events import DeviceMemory, LoadStep, ModelState, ModelStatus, Warned
from lensd_server.engine.models.devices import OffersDevices
from lensd_server.engine.models.loads import Loads, LoadsModels, again
from lensd_server.engine.models.shelf import ConfiguredModel, Shelf
from lensd_server.engine.models.slot import ResidentModel, Slot, Waiter
from lensd_server.engine.observers import Observers
from lensd_server.engine.wakeup import Wakeup
from lensd_server.settings import LimitSettings, ModelSettings

#: What a load takes at least, for deciding whether a deadline can still be met. Whoever leaves with less than that
#: ran out of time: clients give up at their deadline, at which they may be a little ahead of the server.
LEAST_LOAD_S = 0.1

Tell = Callable[[LoadStep | Warned], None]


class Residency:
    """The configured models. Loads run on threads of their own, one at a time a model."""

    def __init__(
        self,
        models: Mapping[str, ModelSettings],
        loader: LoadsModels,
        limits: LimitSettings | None = None,
        *,
        devices: OffersDevices | None = None,
        observers: Observers | None = None,
        when_lost: Callable[[str], None] = lambda _: None,
        when_damaged: Callable[[str, str], None] = lambda _, __: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Called on any thread: ``when_lost`` when only a new process can use a device again, ``when_damaged``
        with the names of an analyzer and of the model into whose weights it wrote, which is loaded anew."""
        self._clock = clock
        self._shelf = Shelf(models)
        self._devices = devices or Devices()
        self._loads = Loads(
            self._shelf,
            loader,
            self._devices,
            limits or LimitSettings(),
            observers or Observers(),
            clock,
            when_lost,
            when_damaged,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the configured models, sorted."""
        return tuple(self._shelf.models)

    def statuses(self) -> list[ModelStatus]:
        """Every configured model, sorted by name."""
        return [self.status(name) for name in self._shelf.models]

    def status(self, name: str) -> ModelStatus:
        """One configured model. Raises UnknownModel."""
        model = self._shelf.model(name)
        with self._shelf.changed:
            return model.describe()

    def memory(self) -> list[DeviceMemory]:
        """Budget and reservations of every device that a configured model may be on."""
        allowed = {device for model in self._shelf.models.values() for device in self._possible(model)}
        with self._shelf.changed:
            room = self._loads.line.room
            return [
                DeviceMemory(
                    device, room.budget(device), room.reserved(device), self._devices.used_bytes(device)
                )
                for device in sorted(allowed)
            ]

    def resident(self, name: str) -> ResidentModel | None:
        """The replica that the next lease would take, if any is in memory. See :meth:`residents`."""
        return next(iter(self.residents(name)), None)

    def residents(self, name: str) -> tuple[ResidentModel, ...]:
        """The replicas in memory. Not leases: for looking, not for running. Raises UnknownModel."""
        model = self._shelf.model(name)
        with self._shelf.changed:
            return model.residents

    async def load(self, name: str) -> AsyncGenerator[LoadStep, None]:
        """Makes all replicas of ``name`` resident for which there is room, and tells how far that has come.

        Ends when that is done, or failed, and one serves. Joins loads that are under way. Leaving early does
        not stop them: :meth:`unload` does. Raises UnknownModel, Draining while it is being unloaded, and what
        the load failed with when no replica serves.
        """
        model = self._shelf.model(name)
        wakeup = Wakeup()
        model.watchers.append(wakeup)
        try:
            with self._shelf.changed:
                model.check_not_unloading()
                before = model.loads
                for slot in model.slots:
                    if not slot.serves:
                        slot.ordered = True
                        self._loads.ask(slot)
            self._shelf.notify(model)
            while True:
                with self._shelf.changed:
                    step, error = model.step_of_order(), model.best.error
                    over, served = not model.is_ordered, model.serves or model.loads > before
                if over and not served:
                    if error is not None:
                        raise again(error)
                    raise Draining(f"model {name} was unloaded while it loaded", retry_after_s=1.0)
                yield step
                if over:
                    return
                await wakeup.wait()
        finally:
            model.watchers.remove(wakeup)

    async def unload(self, name: str) -> ModelStatus:
        """Waits until nobody holds ``name``, frees it, and answers how it is then.

        New leases are refused meanwhile; a load under way is given up. Raises UnknownModel.
        """
        model = self._shelf.model(name)
        wakeup = Wakeup()
        model.watchers.append(wakeup)
        with self._shelf.changed:
            for slot in model.slots:
                slot.unloading += 1
        try:
            while True:
                with self._shelf.changed:
                    if all(slot.state in (ModelState.COLD, ModelState.FAILED) for slot in model.slots):
                        break
                    for slot in model.slots:
                        self._drain(slot)
                self._shelf.notify(model)
                await wakeup.wait()
        finally:
            model.watchers.remove(wakeup)
            with self._shelf.changed:
                for slot in model.slots:
                    self._end_unload(slot)
            self._shelf.notify(model)
        return self.status(name)

    async def watch(self) -> AsyncGenerator[ModelStatus, None]:
        """The state of every model, then each change; of several quick ones perhaps only the last."""
        wakeup = Wakeup()
        models = self._shelf.models.values()
        for model in models:
            model.watchers.append(wakeup)
        seen: dict[str, tuple[object, ...]] = {}
        try:
            while True:
                for status in self.statuses():
                    replicas = tuple(replace(replica, leases=0) for replica in status.replicas)
                    known = (
                        status.state,
                        status.problem,
                        status.revision,
                        status.device,
                        status.detail,
                        replicas,
                    )
                    if seen.get(status.name) != known:
                        seen[status.name] = known
                        yield status
                await wakeup.wait()
        finally:
            for model in models:
                model.watchers.remove(wakeup)

    @asynccontextmanager
    async def lease(
        self, name: str, tell: Tell | None = None, *, deadline: float | None = None
    ) -> AsyncIterator[ResidentModel]:
        """Holds the replica of ``name`` that is used least, loading one first where needed; a load nobody waits
        for is given up, unless those who did ran out of time. Where all are in use one more is loaded, for those
        who come later.

        ``tell`` hears how far the load is, and when models displace each other too fast. ``deadline`` is on the
        residency's clock. Raises UnknownModel, Draining, what the load failed with (at once while the back-off
        after a failure lasts), DeadlineExceeded at once when ``deadline`` leaves less time than the last load
        took, and Exhausted as soon as it leaves no time to wait for memory and load.
        """
        model = self._shelf.model(name)
        waiter = self._enter(model, deadline)
        try:
            yield waiter.model or await self._wait(model, waiter, tell or _ignore, deadline)
        finally:
            self._leave(model, waiter, deadline)

    @contextmanager
    def set_aside(self, device: str, size: int) -> Generator[None, None, None]:
        """Holds ``size`` bytes of the budget of ``device`` for what an analysis computes there itself.

        No model goes for it. Raises Exhausted at once when there is no room.
        """
        with self._shelf.changed:
            reservation = self._loads.line.room.set_aside(device, size)
        try:
            yield
        finally:
            reservation.end()

    def leases(self, name: str) -> int:
        """How many analyses hold ``name`` now. Raises UnknownModel."""
        return self._shelf.model(name).leases

    def close(self) -> None:
        """Gives up loads and ends every device thread; for shutting down, when no analysis is left."""
        self._loads.close()

    def _possible(self, model: ConfiguredModel) -> tuple[str, ...]:
        try:
            return self._devices.candidates(model.settings.device)
        except LoadFailed:  # a device that this machine lacks: its load says so
            return ()

    def _enter(self, model: ConfiguredModel, deadline: float | None) -> Waiter:
        waiter = Waiter(Wakeup())
        with self._shelf.changed:
            model.check_not_unloading()
            slot = model.least_loaded()
            if slot is not None:
                if slot.leases:
                    self._loads.expand(model)
                slot.take(waiter, self._clock())
                return waiter
            best = model.best
            remaining = best.retry_at - self._clock()
            if best.error is not None and remaining > 0:
                raise again(best.error, None if math.isinf(remaining) else remaining)
            self._loads.want(model)
            self._check_deadline(model.best, deadline)
            model.waiters.append(waiter)
        self._shelf.notify(model)
        return waiter

    def _check_deadline(self, slot: Slot, deadline: float | None) -> None:
        """Refuses whom the load of ``slot`` would not serve in time; it goes on for those who come next. Locked."""
        if deadline is None:
            return
        now = self._clock()
        needed_s, left_s = slot.load_left_s(now), max(0.0, deadline - now)
        if needed_s <= left_s:
            return
        slot.outlasts = True
        raise DeadlineExceeded(
            f"model {slot.name} is not in memory, and by its last load that takes {needed_s:.2f} s more, but the "
            f"deadline is in {left_s:.2f} s; allow more time, or try again in {needed_s:.1f} s",
            reason="DEADLINE_TOO_SHORT",
            metadata={
                "model": slot.name,
                "needed_seconds": f"{needed_s:.3f}",
                "left_seconds": f"{left_s:.3f}",
            },
            retry_after_s=needed_s,
        )

    async def _wait(
        self, model: ConfiguredModel, waiter: Waiter, tell: Tell, deadline: float | None
    ) -> ResidentModel:
        told: LoadStep | None = None
        model.watchers.append(waiter.wakeup)
        try:
            while True:
                with self._shelf.changed:
                    if waiter.error is not None:
                        raise again(waiter.error)
                    if waiter.model is not None:
                        break
                    step, left = model.step(), self._time_left(model.best, deadline)
                if told is None or (step.stage, step.fraction, step.detail) != (
                    told.stage,
                    told.fraction,
                    told.detail,
                ):
                    told = step
                    tell(step)
                if left is not None and left <= 0:
                    raise self._no_room(model.best, step)
                await waiter.wakeup.wait(left)
        finally:
            model.watchers.remove(waiter.wakeup)
        with self._shelf.changed:
            now, pace = self._clock(), self._loads.line.pace
            warning = pace.describe(now) if pace.too_fast(now) else ""
        if warning:
            tell(Warned("MODELS_DISPLACE_EACH_OTHER", warning))
        return waiter.model

    def _time_left(self, slot: Slot, deadline: float | None) -> float | None:
        """Seconds until waiting for memory becomes hopeless; ``None`` when that will not be. Locked."""
        if deadline is None or not slot.waits_for_room:
            return None
        return deadline - max(LEAST_LOAD_S, slot.load_s) - max(self._clock(), slot.room_at)

    def _no_room(self, slot: Slot, step: LoadStep) -> Exhausted:
        retry_s = max(1.0, slot.room_at - self._clock(), slot.load_s)
        return Exhausted(
            f"model {slot.name} cannot be loaded in the time allowed: it waits for {step.detail}; try again in "
            f"{retry_s:.0f} s, or allow more time",
            reason="NO_ROOM",
            metadata={"model": slot.name, "waits_for": step.detail},
            retry_after_s=retry_s,
        )

    def _leave(self, model: ConfiguredModel, waiter: Waiter, deadline: float | None) -> None:
        moved = True
        with self._shelf.changed:
            if waiter in model.waiters:
                model.waiters.remove(waiter)
                if deadline is not None and deadline - self._clock() < LEAST_LOAD_S:
                    model.best.outlasts = True
            elif (slot := waiter.slot) is not None:
                slot.give_back(self._clock())
                if slot.damage:
                    self._loads.free_unheld(slot)
                moved = slot.leases == 0
        if moved:
            self._shelf.notify(model)

    def _drain(self, slot: Slot) -> None:
        """Refuses whoever waits for ``slot``, and begins to free it as soon as nobody holds it. Locked."""
        if slot.state is ModelState.LOADING:
            slot.refuse(Draining(f"model {slot.name} was unloaded while it loaded", retry_after_s=1.0))
        elif slot.resident is not None:
            slot.state, slot.yields_to, slot.detail = ModelState.DRAINING, None, "is being unloaded"
            slot.refuse(Draining(f"model {slot.name} is being unloaded; try again", retry_after_s=1.0))
            self._loads.free_unheld(slot)

    def _end_unload(self, slot: Slot) -> None:
        """Locked."""
        slot.unloading -= 1
        if slot.state in (ModelState.COLD, ModelState.FAILED):
            slot.state, slot.problem, slot.error, slot.failures = ModelState.COLD, "", None, 0
            slot.retry_at = 0.0
        # Given up before the model was free: it serves again.
        if not slot.unloading and slot.state is ModelState.DRAINING and slot.resident is not None:
            slot.detail = ""
            slot.state = ModelState.DRAINING if slot.damage else ModelState.RESIDENT


def _ignore(event: LoadStep | Warned) -> None:
    """Nobody listens."""
