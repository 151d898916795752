"""The configured models, each with the replicas it may have, and the lock that guards them all.

A model is as well as its best replica. Everything here is read and written under the lock of the
:class:`Shelf`.
"""

import threading
from collections.abc import Mapping
from dataclasses import replace

from lensd_api import Draining, LensdError, UnknownModel
from lensd_server.engine.events import LoadStep, ModelState, ModelStatus
from lensd_server.engine.models.slot import ResidentModel, Slot, Waiter
from lensd_server.engine.wakeup import Wakeup
from lensd_server.settings import ModelSettings

#: From the best to the worst.
_STANDING = (
    ModelState.RESIDENT,
    ModelState.LOADING,
    ModelState.DRAINING,
    ModelState.COLD,
    ModelState.FAILED,
)


class ConfiguredModel:
    """One model: a slot for each replica, and who waits for any of them."""

    def __init__(self, name: str, settings: ModelSettings) -> None:
        self.name, self.settings = name, settings
        self.waiters: list[Waiter] = []
        self.watchers: list[Wakeup] = []
        self.slots = tuple(
            Slot(name, settings, self.waiters, self.watchers) for _ in range(settings.replicas)
        )

    @property
    def best(self) -> Slot:
        """The replica that serves, or is nearest to it."""
        return min(self.slots, key=lambda slot: (_STANDING.index(slot.state), slot.order, slot.retry_at))

    @property
    def serves(self) -> bool:
        """Whether new leases are given."""
        return self.best.serves

    @property
    def is_hopeless(self) -> bool:
        """Whether no replica serves, or will without being asked for."""
        return self.best.state in (ModelState.COLD, ModelState.FAILED)

    @property
    def is_ordered(self) -> bool:
        """Whether a load that was ordered has not ended."""
        return any(
            slot.ordered and slot.state in (ModelState.LOADING, ModelState.DRAINING) for slot in self.slots
        )

    @property
    def loads(self) -> int:
        """How often a replica became resident."""
        return sum(slot.loads for slot in self.slots)

    @property
    def leases(self) -> int:
        """How many analyses hold it."""
        return sum(slot.leases for slot in self.slots)

    @property
    def residents(self) -> tuple[ResidentModel, ...]:
        """The replicas in memory, the one that the next lease would take first."""
        there = [slot for slot in self.slots if slot.resident is not None]
        there.sort(key=lambda slot: (not slot.serves, *_load(slot)))
        return tuple(slot.resident for slot in there if slot.resident is not None)

    def least_loaded(self) -> Slot | None:
        """Which of the replicas that serve gets the next lease: fewest leases, then fewest waiting rows."""
        return min((slot for slot in self.slots if slot.serves), key=_load, default=None)

    def spare(self, now: float) -> Slot | None:
        """A slot for one more replica; ``None`` while one is loaded, or has just failed or found no room."""
        if any(slot.state is ModelState.LOADING for slot in self.slots):
            return None
        free = (slot for slot in self.slots if slot.state in (ModelState.COLD, ModelState.FAILED))
        return next((slot for slot in free if slot.resident is None and slot.retry_at <= now), None)

    def refuse(self, error: LensdError) -> None:
        """Everybody who waited is told why nothing will serve."""
        for slot in self.slots:
            slot.refuse(error)

    def check_not_unloading(self) -> None:
        """Raises Draining."""
        if any(slot.unloading for slot in self.slots):
            raise Draining(f"model {self.name} is being unloaded; try again", retry_after_s=1.0)

    def step(self) -> LoadStep:
        """How far the load is that whoever waits will get."""
        return self._step_of(self.best)

    def step_of_order(self) -> LoadStep:
        """How far all loads together are that were ordered."""
        ordered = [slot for slot in self.slots if slot.ordered]
        step = self._step_of(ordered[0] if ordered else self.best)
        done = [self._step_of(slot).fraction if slot.ordered else 1.0 for slot in self.slots]
        return replace(step, fraction=sum(done) / len(done))

    def describe(self) -> ModelStatus:
        """What an operator sees."""
        best, residents = self.best, self.residents
        replicas = tuple(slot.describe() for slot in self.slots)
        shown = best.describe()
        card = residents[0].loaded.card if residents else None
        queues = [resident.batcher.waiting() for resident in residents]
        return ModelStatus(
            name=self.name,
            source=self.settings.source,
            state=best.state,
            revision="" if card is None else card.revision,
            device=shown.device or next((replica.device for replica in replicas if replica.device), ""),
            dtype="" if card is None else card.dtype,
            resident_bytes=sum(resident.loaded.resident_bytes for resident in residents),
            reserved_bytes=sum(slot.reservation.size for slot in self.slots if slot.reservation is not None),
            parameters=residents[0].loaded.parameters if residents else 0,
            leases=self.leases,
            waiting=len(self.waiters),
            pinned=self.settings.pin,
            problem=shown.problem if best.state is ModelState.FAILED else "",
            detail=shown.detail,
            anatomy=None if card is None else card.anatomy,
            queued_rows=sum(rows for rows, _ in queues),
            queued_tokens=sum(tokens for _, tokens in queues),
            replicas=replicas,
        )

    def _step_of(self, slot: Slot) -> LoadStep:
        if slot.state is ModelState.DRAINING and slot.yields_to is not None:
            return LoadStep(self.describe(), "wait_turn", 0.0, f"{slot.yields_to.name} is loaded first")
        if slot.damage:
            return LoadStep(self.describe(), "wait_turn", 0.0, slot.damage)
        return LoadStep(self.describe(), slot.stage, slot.fraction, slot.detail)


def _load(slot: Slot) -> tuple[int, int]:
    return slot.leases, 0 if slot.resident is None else slot.resident.batcher.waiting()[0]


class Shelf:
    """All models, and the lock that guards them. ``changed`` is notified whenever something moves."""

    def __init__(self, models: Mapping[str, ModelSettings]) -> None:
        self.models = {name: ConfiguredModel(name, settings) for name, settings in sorted(models.items())}
        self.slots = tuple(slot for model in self.models.values() for slot in model.slots)
        self.changed = threading.Condition()

    def model(self, name: str) -> ConfiguredModel:
        """Raises UnknownModel."""
        model = self.models.get(name)
        if model is None:
            known = ", ".join(self.models) or "none"
            raise UnknownModel(f"no model {name!r} is configured; configured are: {known}")
        return model

    def notify(self, of: Slot | ConfiguredModel) -> None:
        """Wakes whoever watches the model ``of`` or its slot, and the loads that wait for room."""
        with self.changed:
            self.changed.notify_all()
        for wakeup in tuple(of.watchers):
            wakeup.set()
