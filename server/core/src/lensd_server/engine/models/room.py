"""How much of each device's memory is promised to whom.

Invariant: what is reserved on a device never exceeds its budget by more than a prediction was wrong.
A reservation counts until the memory is really free, not until somebody said that it should be.
Used under the residency's lock; only :meth:`Reservation.end` may be called from anywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from lensd_api import Exhausted

#: Left to everything else when the budget is what was measured to be free: a twentieth of it, and
#: at least as much as this process needs for itself.
SPARE_SHARE, SPARE_BYTES = 0.05, 256 * 1024 * 1024


class Memory(Protocol):
    """What devices say about themselves, by name."""

    def free_bytes(self, device: str) -> int | None:
        """Bytes that can be allocated now; ``None`` when nobody says."""
        ...


@dataclass(slots=True, eq=False)
class Reservation:
    """Bytes set aside on a device for one model, or for what one analysis computes there.

    ``loaded``: they are occupied. ``left_at``: when the model was given up, after which the
    reservation ends as soon as nothing refers to its weights.
    """

    device: str
    size: int
    loaded: bool = False
    left_at: float | None = None
    ended: bool = False

    def end(self) -> None:
        """The memory is free. Takes no lock: the garbage collector may call it anywhere."""
        self.ended = True


class Room:
    """Budgets, and what is set aside of them."""

    def __init__(self, memory: Memory, configured: int | Mapping[str, int] | None = None) -> None:
        self._memory = memory
        self._configured = configured
        self._measured: dict[str, int | None] = {}
        self._reservations: list[Reservation] = []

    def budget(self, device: str) -> int | None:
        """Bytes that models may occupy; ``None`` for no bound: not configured and not to be measured.

        What is measured is measured when no model is on the device.
        """
        configured = self._configured
        if isinstance(configured, Mapping):
            configured = configured.get(device, configured.get(device.partition(":")[0]))
        if configured is not None:
            return configured
        if device not in self._measured or not self.on(device):
            free = self._memory.free_bytes(device)
            spare = 0 if free is None else max(SPARE_BYTES, round(free * SPARE_SHARE))
            self._measured[device] = None if free is None else max(0, free - spare)
        return self._measured[device]

    def on(self, device: str) -> list[Reservation]:
        """What is set aside on ``device`` now."""
        self._reservations = [known for known in self._reservations if not known.ended]
        return [known for known in self._reservations if known.device == device]

    def reserved(self, device: str) -> int:
        """Bytes set aside on ``device``."""
        return sum(known.size for known in self.on(device))

    def left(self, device: str) -> int | None:
        """Bytes of the budget that nobody has; ``None`` for no bound."""
        budget = self.budget(device)
        return None if budget is None else budget - self.reserved(device)

    def missing(self, device: str, size: int) -> int:
        """Bytes that must become free before ``size`` more fit into the budget; 0 when they fit."""
        left = self.left(device)
        return 0 if left is None else max(0, size - left)

    def lacking(self, device: str, size: int) -> int:
        """The same for the memory that the device really has: others may use it too."""
        free = self._memory.free_bytes(device)
        if free is None:
            return 0
        promised = sum(known.size for known in self.on(device) if not known.loaded)
        return max(0, size + promised - free)

    def reserve(self, device: str, size: int) -> Reservation:
        """Sets ``size`` aside; whether it fits was asked before."""
        reservation = Reservation(device, size)
        self._reservations.append(reservation)
        return reservation

    def set_aside(self, device: str, size: int) -> Reservation:
        """The same for something else than a model, which fills it at once. Raises Exhausted."""
        short = max(self.missing(device, size), self.lacking(device, size))
        if short > 0:
            raise Exhausted(
                f"this analysis needs {size} bytes on {device} beside its model, where {max(0, size - short)} "
                "are left; ask for less, or have a model unloaded or limits.memory_bytes raised",
                reason="NO_ROOM",
                metadata={
                    "needed_bytes": str(size),
                    "left_bytes": str(max(0, size - short)),
                    "device": device,
                },
                retry_after_s=30.0,
            )
        reservation = self.reserve(device, size)
        reservation.loaded = True
        return reservation
