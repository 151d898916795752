"""The line of loads that wait for memory: each evicts, on its own thread, what is in its way.

Invariant: however a wait ends, its claim is gone, and whatever was to go for it and need not serves again.
"""

from collections.abc import Callable

import structlog

from lensd_server.engine.events import ModelState
from lensd_server.engine.models.claims import FREEING, Claim, Forgo, Go, MakeRoom, Wait, check_budget, decide
from lensd_server.engine.models.devices import OffersDevices
from lensd_server.engine.models.pace import EvictionPace
from lensd_server.engine.models.room import Room
from lensd_server.engine.models.shelf import Shelf
from lensd_server.engine.models.slot import ResidentModel, Slot
from lensd_server.engine.observers import Observers
from lensd_server.settings import LimitSettings

#: How often a load that waits looks whether memory is free or a model has stayed long enough: neither
#: tells anybody.
LOOK_S = 0.05

_log = structlog.get_logger("lensd.models")


class NoRoomForAnother(Exception):
    """One more replica of a model that serves has no room, and nothing goes for it; the text says so."""


class Unwanted(Exception):
    """Nobody waits for a load any more. Raised where it can be given up."""


class MemoryLine:
    """Gives memory to loads, first come, first served. ``free`` frees a model that was taken off its slot."""

    def __init__(
        self,
        shelf: Shelf,
        devices: OffersDevices,
        limits: LimitSettings,
        observers: Observers,
        clock: Callable[[], float],
        free: Callable[[Slot, list[ResidentModel]], None],
    ) -> None:
        self._shelf, self._devices, self._observers = shelf, devices, observers
        self._clock, self._free = clock, free
        self.room = Room(devices, limits.memory_bytes)
        self.pace = EvictionPace(limits.max_evictions_per_minute)
        #: When memory was last given back.
        self.freed_at = float("-inf")
        self._claims: list[Claim] = []

    def wait(self, claim: Claim, check_wanted: Callable[[], None]) -> str:
        """Waits until the bytes that are claimed are free on one of the devices, and sets them aside there.

        ``check_wanted`` is called now and then, under the lock, and raises to give the wait up. Raises
        NoRoomForAnother, Unwanted rather than to wait or to make room for nobody, and what
        :func:`lensd_server.engine.models.claims.decide` does.
        """
        with self._shelf.changed:
            check_budget(claim, self.room)
            self._claims.append(claim)
        try:
            while (device := self._step(claim, check_wanted)) is None:
                pass
            return device
        finally:
            with self._shelf.changed:
                self._claims.remove(claim)
                claim.slot.room_at = 0.0
                self._let_stay(claim.slot, ())
                self._shelf.changed.notify_all()

    def _step(self, claim: Claim, check_wanted: Callable[[], None]) -> str | None:
        """Takes the memory, evicts one model, or waits a little; the device once the memory is taken."""
        slot, victim, mine = claim.slot, None, list[ResidentModel]()
        with self._shelf.changed:
            check_wanted()
            slots = self._shelf.slots
            decision = decide(claim, self._claims, slots, self.room, self._clock(), self.freed_at)
            if isinstance(decision, Forgo):
                raise NoRoomForAnother(decision.detail)
            if not isinstance(decision, Go) and not slot.wanted:
                raise Unwanted
            self._let_stay(slot, decision.victims if isinstance(decision, MakeRoom) else ())
            if isinstance(decision, Go):
                self._note_sharing(slot, decision.device)
                slot.reservation = self.room.reserve(decision.device, claim.needs[decision.device])
                return decision.device
            if isinstance(decision, MakeRoom):
                victim = self._make_room(slot, decision)
            if victim is not None:
                mine = victim.take_out(self._clock())
            elif not self._note_wait(slot, decision):
                self._shelf.changed.wait(LOOK_S)
        if victim is not None:
            self._evict(victim, mine, slot)
            return None
        self._shelf.notify(slot)
        if isinstance(decision, Wait) and decision.detail == FREEING:
            # Whoever used the model last may have let go of it after it was freed, in a cycle.
            self._devices.open(next(iter(claim.needs))).release()
        return None

    def _make_room(self, slot: Slot, decision: MakeRoom) -> Slot | None:
        """Stops giving leases to the victims; answers one that can go at once. Locked."""
        for victim in decision.victims:
            if victim.state is ModelState.RESIDENT:
                victim.state, victim.yields_to = ModelState.DRAINING, slot
                self._shelf.notify(victim)
        return next((victim for victim in decision.victims if victim.leases == 0), None)

    def _let_stay(self, slot: Slot, victims: tuple[Slot, ...]) -> None:
        """Whatever was to go for ``slot`` and need not after all serves again. Locked."""
        for other in self._shelf.slots:
            if other.yields_to is slot and other.resident is not None and other not in victims:
                other.state, other.yields_to = ModelState.RESIDENT, None
                other.grant(self._clock())
                self._shelf.notify(other)

    def _note_sharing(self, slot: Slot, device: str) -> None:
        """Warns when another replica of the model is on ``device`` already. Locked."""
        others = (other.reservation for other in self._shelf.slots if other.name == slot.name)
        if any(reservation is not None and reservation.device == device for reservation in others):
            _log.warning(
                "replicas share a device",
                model=slot.name,
                device=device,
                hint="each needs its own memory, and they share what the device computes; set replicas to "
                "the number of devices",
            )

    def _note_wait(self, slot: Slot, decision: MakeRoom | Wait) -> bool:
        """Says what is waited for; whether that is news. Locked."""
        slot.room_at = decision.until if isinstance(decision, Wait) else 0.0
        # The time that is left changes all the while, and is told as it was at first.
        seen = (slot.stage, slot.detail.partition(", which")[0])
        slot.stage = "wait_memory"
        if seen == (slot.stage, decision.detail.partition(", which")[0]):
            return False
        slot.detail = decision.detail
        return True

    def _evict(self, victim: Slot, mine: list[ResidentModel], slot: Slot) -> None:
        now = self._clock()
        # Nobody may have used it, or it was in use until it had to give way.
        reason = "turn" if victim.waiters else "idle"
        _log.info("evicting model", model=victim.name, reason=reason, to_load=slot.name)
        self._free(victim, mine)
        self._observers.evicted(victim.name, reason)
        with self._shelf.changed:
            self.pace.note(now)
            warning = self.pace.describe(now) if self.pace.is_worth_a_warning(now) else ""
        if warning:
            _log.warning(
                "models displace each other", evictions_per_minute=self.pace.recent(now), hint=warning
            )
