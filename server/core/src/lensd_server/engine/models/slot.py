"""The place of one replica of a model: its state and who holds it.

Everything here is read and written under the lock of the shelf (:mod:`.shelf`).
"""

import threading
from dataclasses import dataclass, field

from lensd_api import LensdError
from lensd_server.engine.batching.batcher import Batcher
from lensd_server.engine.events import ModelState, ReplicaStatus
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
    """Somebody who wants a lease. Gets either ``model``, held in ``slot``, or ``error``."""

    wakeup: Wakeup
    model: ResidentModel | None = None
    slot: "Slot | None" = None
    error: LensdError | None = None


@dataclass(slots=True, eq=False)
class Slot:
    """Everything about one replica. ``waiters`` and ``watchers`` are its model's, shared by its replicas:
    whoever waits for a model takes the replica that serves first, so nobody waits while one serves.

    Watchers are appended to and removed from on their own loops, copied before use.
    """

    name: str
    settings: ModelSettings
    waiters: list[Waiter] = field(default_factory=list[Waiter])
    watchers: list[Wakeup] = field(default_factory=list[Wakeup])
    state: ModelState = ModelState.COLD
    resident: ResidentModel | None = None
    reservation: Reservation | None = None
    leases: int = 0
    #: It was asked for whether anybody waits or not, which stands until the load has ended.
    ordered: bool = False
    #: Whoever waited for the load ran out of time: it goes on for those who come next, if it need not wait for room.
    outlasts: bool = False
    #: Operators who wait for it to be gone; nobody gets a lease meanwhile.
    unloading: int = 0
    #: What it makes room for once its leases have ended; ``None`` when it stays.
    yields_to: "Slot | None" = None
    #: Who wrote into its weights: it goes once its leases have ended. Empty when nobody did.
    damage: str = ""

    #: How often it became resident.
    loads: int = 0
    #: What the last load took from its reading on: what comes before it stays on disk, and waiting is no work.
    load_s: float = 0.0
    #: When the load under way began to read; ``None`` before.
    read_at: float | None = None
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

    def load_left_s(self, now: float) -> float:
        """What its load will take yet, if it takes as long as the last one; 0 where there was none."""
        return max(0.0, self.load_s - (0.0 if self.read_at is None else now - self.read_at))

    def take(self, waiter: Waiter, now: float) -> None:
        """One more lease, of ``waiter``."""
        assert self.resident is not None
        self.leases += 1
        self.last_used = now
        waiter.model, waiter.slot = self.resident, self

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
        for waiter in self._dismiss():
            self.take(waiter, now)
            waiter.wakeup.set()
        self.order, self.ordered = 0, False

    def refuse(self, error: LensdError) -> None:
        """Nothing will serve: everybody who waited is told why."""
        for waiter in self._dismiss():
            waiter.error = error
            waiter.wakeup.set()
        self.order, self.ordered = 0, False

    def describe(self) -> ReplicaStatus:
        """What an operator sees."""
        device = self.reservation.device if self.reservation is not None else ""
        return ReplicaStatus(
            state=self.state,
            device=device if self.resident is None else self.resident.loaded.device.name,
            leases=self.leases,
            problem=self.problem,
            detail=self._detail() if self.state in (ModelState.LOADING, ModelState.DRAINING) else "",
        )

    def _detail(self) -> str:
        return f"makes room for {self.yields_to.name}" if self.yields_to else self.damage or self.detail

    def _dismiss(self) -> list[Waiter]:
        waiters = list(self.waiters)
        self.waiters.clear()
        return waiters
