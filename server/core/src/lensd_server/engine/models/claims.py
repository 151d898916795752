"""Who gets memory next, and which models must go for it.

Claims are served first come, first served on each device they could use. A model goes only when it
is not pinned, has stayed for its minimum, and nobody holds it; replicas beside which others of their model
serve go first, then those least recently used. Replicas of a model spread over the devices, and only its
first one makes others go: a further one takes what is free. Pure: decides, and changes nothing. Used under the residency's lock.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lensd_api import Exhausted, FailedPrecondition, LensdError, LoadFailed
from lensd_server.engine.events import ModelState
from lensd_server.engine.models.room import Room
from lensd_server.engine.models.slot import Slot

#: How long the memory of a model that was given up may take to become free: somebody may hold it still.
RELEASE_S = 30.0

#: What a claim waits for when a model was given up and something refers to its weights still.
FREEING = "memory to become free"

#: How long the device may take to notice that memory was given back to it.
SETTLE_S = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """A load that needs memory: ``needs`` holds the bytes by device, one entry for each it may use, and
    ``caches`` how many of them are for keys and values."""

    slot: Slot
    needs: Mapping[str, int]
    caches: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class Go:
    """It fits on ``device``."""

    device: str


@dataclass(frozen=True, slots=True)
class MakeRoom:
    """It fits once ``victims`` are gone; they get no new leases and go when they have none left."""

    device: str
    victims: tuple[Slot, ...]

    @property
    def detail(self) -> str:
        """What is waited for."""
        held = [f"{slot.leases} analyses of {slot.name}" for slot in self.victims if slot.leases]
        return f"{' and '.join(held)} to end" if held else f"{_names(self.victims)} to be evicted"


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do now; ``until`` is when there may be, as far as is known."""

    detail: str
    until: float = 0.0


@dataclass(frozen=True, slots=True)
class Forgo:
    """There is no room for one more replica of a model that others serve; ``detail`` says how much it lacks."""

    detail: str


Decision = Go | MakeRoom | Wait | Forgo


def decide(
    claim: Claim,
    claims: Iterable[Claim],
    slots: Sequence[Slot],
    room: Room,
    now: float,
    freed_at: float = float("-inf"),
) -> Decision:
    """What ``claim`` may do now. ``freed_at``: when memory was last given back.

    Raises FailedPrecondition when it will never fit, Exhausted when pinned models are in the way, and
    LoadFailed when the device's memory is used by others than this server.
    """
    check_budget(claim, room)
    allowed = _least_shared(claim, slots, room)
    ahead = {
        device: other.slot.name
        for other in claims
        for device in other.needs
        if other.slot.order < claim.slot.order
    }
    open_to = [device for device in allowed if device not in ahead]
    if not open_to:
        return Wait(f"{next(iter(ahead.values()))}, which was asked for first")
    fitting = [device for device in open_to if _short_of(claim, device, room) == 0]
    if fitting:
        return Go(max(fitting, key=lambda device: _left(room, device)))
    options = [_option(claim, device, slots, room, now, freed_at) for device in open_to]
    possible = [option for option in options if option is not None]
    if possible:
        return min(possible, key=_rank)
    if len(open_to) < len(allowed):
        return Wait(f"{next(iter(ahead.values()))}, which was asked for first")
    if is_further(claim.slot, slots):
        return Forgo(_lack(claim, max(allowed, key=lambda device: _left(room, device)), room))
    raise _refusal(claim, room)


def is_further(slot: Slot, slots: Sequence[Slot]) -> bool:
    """Whether another replica of the model of ``slot`` has memory already, or is to have it first."""
    return any(
        other.reservation is not None or (other.state is ModelState.LOADING and 0 < other.order < slot.order)
        for other in slots
        if other.name == slot.name and other is not slot
    )


def check_budget(claim: Claim, room: Room) -> None:
    """Raises FailedPrecondition when not even an empty device would do."""
    budgets = {device: room.budget(device) for device in claim.needs}
    if all(budget is not None and claim.needs[device] > budget for device, budget in budgets.items()):
        device = max(claim.needs, key=lambda name: budgets[name] or 0)
        needed, budget = claim.needs[device], budgets[device] or 0
        name, cache = claim.slot.name, claim.caches.get(device, 0)
        of_them = f", {cache} of them for keys and values (models.{name}.max_cache_bytes)" if cache else ""
        raise FailedPrecondition(
            f"model {name} needs {needed} bytes on {device}{of_them}, but all models together may have {budget}; "
            "raise limits.memory_bytes, or use a smaller dtype or another device",
            reason="MODEL_TOO_LARGE",
            metadata={"needed_bytes": str(needed), "budget_bytes": str(budget), "device": device},
        )


def _least_shared(claim: Claim, slots: Sequence[Slot], room: Room) -> list[str]:
    """The devices large enough that hold the fewest replicas of the model already."""
    shared = Counter(
        slot.reservation.device
        for slot in slots
        if slot.name == claim.slot.name and slot.reservation is not None
    )
    budgets = {device: room.budget(device) for device in claim.needs}
    large = [
        device
        for device, needed in claim.needs.items()
        if (budget := budgets[device]) is None or needed <= budget
    ]
    fewest = min(shared[device] for device in large)
    return [device for device in large if shared[device] == fewest]


def _short_of(claim: Claim, device: str, room: Room) -> int:
    needed = claim.needs[device]
    return max(room.missing(device, needed), room.lacking(device, needed))


def _left(room: Room, device: str) -> float:
    left = room.left(device)
    return float("inf") if left is None else left


def _option(
    claim: Claim, device: str, slots: Sequence[Slot], room: Room, now: float, freed_at: float
) -> MakeRoom | Wait | None:
    """How there could be room on ``device``; ``None`` when there could not."""
    reservations = room.on(device)
    here = [slot for slot in slots if slot.reservation is not None and slot.reservation.device == device]
    leaving = [r.size for r in reservations if r.left_at is not None and now - r.left_at < RELEASE_S]
    unloading = [slot.reservation.size for slot in here if slot.unloading and slot.reservation is not None]
    short = _short_of(claim, device, room) - sum(leaving) - sum(unloading)
    if short <= 0:
        return Wait(FREEING)
    if room.missing(device, claim.needs[device]) == 0 and now - freed_at < SETTLE_S:
        return Wait(FREEING)
    victims: list[Slot] = []
    if not is_further(claim.slot, slots):
        may_go = [s for s in here if s.resident is not None and not s.unloading and not s.settings.pin]
        while short > 0 and may_go:
            victim = min(may_go, key=lambda slot: _dearness(slot, victims, slots, now))
            may_go.remove(victim)
            victims.append(victim)
            short -= 0 if victim.reservation is None else victim.reservation.size
    if short > 0:
        return Wait("another load to end") if any(not r.loaded for r in reservations) else None
    until = max(slot.stays_until for slot in victims)
    if until > now:
        kept = [slot for slot in victims if slot.stays_until > now]
        return Wait(f"{_names(kept)}, which stays for {until - now:.1f} s more", until)
    return MakeRoom(device, tuple(victims))


def _dearness(
    slot: Slot, victims: Sequence[Slot], slots: Sequence[Slot], now: float
) -> tuple[bool, bool, bool, float]:
    """The less, the sooner it goes, when ``victims`` go as well."""
    is_last = not any(
        other.serves and other.name == slot.name and other is not slot and other not in victims
        for other in slots
    )
    return slot.stays_until > now, slot.leases > 0, is_last, slot.last_used


def _lack(claim: Claim, device: str, room: Room) -> str:
    needed = claim.needs[device]
    return (
        f"no room for one more replica, for which nothing is evicted: it needs {needed} bytes on {device} and "
        f"lacks {_short_of(claim, device, room)}"
    )


def _rank(option: MakeRoom | Wait) -> tuple[int, float]:
    """The sooner the better."""
    if isinstance(option, MakeRoom):
        held = sum(slot.leases for slot in option.victims)
        return (1, 0.0) if held == 0 else (2, held)
    return (3, option.until) if option.until else (0, 0.0)


def _refusal(claim: Claim, room: Room) -> LensdError:
    device = max(claim.needs, key=lambda name: _left(room, name))
    needed, budget, reserved = claim.needs[device], room.budget(device), room.reserved(device)
    name = claim.slot.name
    if room.missing(device, needed):
        return Exhausted(
            f"model {name} needs {needed} bytes on {device}; models that are pinned, or whose memory something "
            f"still holds, have {reserved} of {budget}: unload one, or raise limits.memory_bytes",
            reason="NO_ROOM",
            metadata={"needed_bytes": str(needed), "budget_bytes": str(budget), "device": device},
            retry_after_s=30.0,
        )
    return LoadFailed(
        f"model {name} needs {needed} bytes on {device}, where {room.lacking(device, needed)} of them are used "
        "by something else than this server; stop that, or lower limits.memory_bytes to what there is",
        reason="NO_MEMORY",
        metadata={"needed_bytes": str(needed), "device": device},
        retry_after_s=30.0,
    )


def _names(slots: Sequence[Slot]) -> str:
    return " and ".join(slot.name for slot in slots)
