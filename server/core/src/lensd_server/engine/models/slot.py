"""One configured model: its state, who holds it, who waits for it.

Everything here is read and written under the lock of the :class:`Shelf`.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from lensd_api import Draining, LensdError, UnknownModel
from lensd_server.engine.batching.batcher import Batcher
from lensd_server.engine.events import LoadStep, ModelState, ModelStatus
from lensd_server.engine.models.loading import LoadedModel
from lensd_server.engine.models.room import Reservation
from lensd_server.engine.wakeup import Wakeup
from lensd_server.settings import ModelSettings


@dataclass(frozen=True, slots=True)
class ResidentModel:
    """A model in memory with its device thread."""

    loaded: LoadedModel
    batcher: Batcher


@dataclass(slots=True, eq=False)
class Waiter:
    """Somebody who wants a lease. Gets either ``model``, which is a lease, or ``error``."""

    wakeup: Wakeup
    model: ResidentModel | None = None
    error: LensdError | None = None


@dataclass(slots=True, eq=False)
class Slot:
    """Everything about one configured model."""

    name: str
    settings: ModelSettings
    state: ModelState = ModelState.COLD
    resident: ResidentModel | None = None
    reservation: Reservation | None = None
    leases: int = 0
    waiters: list[Waiter] = field(default_factory=list[Waiter])
    #: An operator asked for it, which stands until the load has ended.
    ordered: bool = False
    #: Operators who wait for it to be gone; nobody gets a lease meanwhile.
    unloading: int = 0
    #: The model it makes room for once its leases have ended; empty when it stays.
    yields_to: str = ""
    #: Who wrote into its weights: it goes once its leases have ended. Empty when nobody did.
    damage: str = ""

    #: How often it became resident.
    loads: int = 0
    #: What the last load took, waiting for memory not counted.
    load_s: float = 0.0
    last_used: float = 0.0
    #: Not evicted before.
    stays_until: float = 0.0

    #: The load under way: who asked first is served first.
    loading: threading.Thread | None = None
    order: int = 0
    stage: str = ""
    fraction: float = 0.0
    detail: str = ""
    #: When there may be room, as far as is known.
    room_at: float = 0.0

    problem: str = ""
    error: LensdError | None = None
    failures: int = 0
    retry_at: float = 0.0

    #: Appended to and removed from on their own loops, copied before use.
    watchers: list[Wakeup] = field(default_factory=list[Wakeup])

    @property
    def serves(self) -> bool:
        """Whether new leases are given."""
        return self.state is ModelState.RESIDENT

    @property
    def wanted(self) -> bool:
        """Whether anybody waits for the load."""
        return self.ordered or bool(self.waiters)

    @property
    def waits_for_room(self) -> bool:
        """Whether others must go before it can be loaded."""
        return not self.serves and self.stage in ("wait_memory", "wait_turn")

    def take(self, now: float) -> ResidentModel:
        """One more lease."""
        assert self.resident is not None
        self.leases += 1
        self.last_used = now
        return self.resident

    def give_back(self, now: float) -> None:
        """One lease less."""
        self.leases -= 1
        self.last_used = now

    def take_out(self, now: float) -> list[ResidentModel]:
        """Takes its model off it, to be freed: whoever gets the list has the last reference."""
        assert self.resident is not None
        mine = [self.resident]
        self.resident, self.damage = None, ""
        if self.reservation is not None:
            self.reservation.left_at = now
            self.reservation = None
        return mine

    def grant(self, now: float) -> None:
        """It serves: everybody who waited gets a lease, before anybody can take the model away."""
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter.model = self.take(now)
            waiter.wakeup.set()
        self.order, self.ordered = 0, False

    def refuse(self, error: LensdError) -> None:
        """It will not serve: everybody who waited is told why."""
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter.error = error
            waiter.wakeup.set()
        self.order, self.ordered = 0, False

    def check_not_unloading(self) -> None:
        """Raises Draining."""
        if self.unloading:
            raise Draining(f"model {self.name} is being unloaded; try again", retry_after_s=1.0)

    def step(self) -> LoadStep:
        """How far its load is."""
        if self.state is ModelState.DRAINING and self.yields_to:
            return LoadStep(self.describe(), "wait_turn", 0.0, f"{self.yields_to} is loaded first")
        if self.damage:
            return LoadStep(self.describe(), "wait_turn", 0.0, self.damage)
        return LoadStep(self.describe(), self.stage, self.fraction, self.detail)

    def describe(self) -> ModelStatus:
        """What an operator sees."""
        resident, reservation = self.resident, self.reservation
        loaded = None if resident is None else resident.loaded
        rows, tokens = (0, 0) if resident is None else resident.batcher.waiting()
        detail = f"makes room for {self.yields_to}" if self.yields_to else self.damage or self.detail
        return ModelStatus(
            name=self.name,
            source=self.settings.source,
            state=self.state,
            revision="" if loaded is None else loaded.card.revision,
            device=loaded.device.name if loaded is not None else reservation.device if reservation else "",
            dtype="" if loaded is None else loaded.card.dtype,
            resident_bytes=0 if loaded is None else loaded.resident_bytes,
            reserved_bytes=0 if reservation is None else reservation.size,
            parameters=0 if loaded is None else loaded.parameters,
            leases=self.leases,
            waiting=len(self.waiters),
            pinned=self.settings.pin,
            problem=self.problem,
            detail=detail if self.state in (ModelState.LOADING, ModelState.DRAINING) else "",
            anatomy=None if loaded is None else loaded.card.anatomy,
            queued_rows=rows,
            queued_tokens=tokens,
        )


class Shelf:
    """All slots, and the lock that guards them. ``changed`` is notified whenever something moves."""

    def __init__(self, models: Mapping[str, ModelSettings]) -> None:
        self.slots = {name: Slot(name, settings) for name, settings in sorted(models.items())}
        self.changed = threading.Condition()

    def slot(self, name: str) -> Slot:
        """Raises UnknownModel."""
        slot = self.slots.get(name)
        if slot is None:
            known = ", ".join(self.slots) or "none"
            raise UnknownModel(f"no model {name!r} is configured; configured are: {known}")
        return slot

    def notify(self, slot: Slot) -> None:
        """Wakes whoever watches ``slot``, and the loads that wait for room."""
        with self.changed:
            self.changed.notify_all()
        for wakeup in tuple(slot.watchers):
            wakeup.set()
