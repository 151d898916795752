"""Models that weigh what a test says, on devices that hold what a test says."""

import asyncio
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any, cast

from torch import nn

from lensd_api import LoadFailed
from lensd_server.engine.batching.price import Price
from lensd_server.engine.batching.turn import Turn
from lensd_server.engine.device_faults import is_beyond_repair
from lensd_server.engine.events import ModelState
from lensd_server.engine.models.loading import LoadedModel
from lensd_server.engine.models.residency import Residency
from lensd_server.engine.observers import Observers
from lensd_server.settings import LimitSettings, ModelSettings

#: Long enough that only a hang reaches it.
PATIENCE_S = 60.0


class FakeDevice:
    """A device in name only."""

    batch_tokens, is_cpu, longest_wait = (128, 2048), True, 0.0

    def __init__(self, name: str, cache_bytes: int = 0) -> None:
        self.name, self.cache_bytes, self.turn = name, cache_bytes, Turn()

    @contextmanager
    def entered(self) -> Iterator[None]:
        yield

    def tidy(self) -> None:
        pass

    def release(self) -> None:
        """The garbage of a test is not worth collecting each time: references are counted."""

    leave = release

    def is_lost(self, error: BaseException) -> bool:
        return is_beyond_repair(error)


class FakeDevices:
    """Devices by name; ``others``: bytes that something else than this server uses."""

    def __init__(self, *names: str, others: Mapping[str, int] | None = None, size: int | None = None) -> None:
        self.names, self.size = names, size
        #: Keys and values that a model keeps unless told otherwise.
        self.cache_bytes = 0
        self.others = dict(others or {})
        self.in_use: Counter[str] = Counter()

    def candidates(self, wanted: str) -> tuple[str, ...]:
        found = self.names if wanted == "auto" else tuple(n for n in self.names if n.startswith(wanted))
        if not found:
            raise LoadFailed(f"no {wanted}")
        return found

    def open(self, name: str) -> Any:
        return FakeDevice(name, self.cache_bytes)

    def free_bytes(self, device: str) -> int | None:
        if self.size is None:
            return None
        return self.size - self.in_use[device] - self.others.get(device, 0)

    def used_bytes(self, device: str) -> int:
        return self.in_use[device]


class SizedLoader:
    """Loads models of given sizes and notes the most that was in memory at once.

    ``faults`` are raised once each; a model in ``held`` stays in its load until it is taken out.
    """

    def __init__(self, devices: FakeDevices, sizes: Mapping[str, int]) -> None:
        self.devices, self.sizes = devices, dict(sizes)
        self.faults: dict[str, BaseException] = {}
        self.loads: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.really: dict[str, int] = {}
        #: What happens while the weights of a model are read.
        self.takes: dict[str, Callable[[], None]] = {}
        self.gate = threading.Condition()
        self.held: set[str] = set()
        #: What the files of a model are, where they were changed.
        self.revisions: dict[str, str] = {}
        self.inside: set[str] = set()
        #: Keeps the weights of every model alive, as a plugin that does not let go would.
        self.hoard: list[nn.Module] | None = None

    def load(
        self, name: str, settings: ModelSettings, report: Callable[[str, float], None], claim: Any
    ) -> LoadedModel:
        size = self.really.get(name, self.sizes[name])
        device = claim(lambda device: self.sizes[name])
        self.loads[name] += 1
        with self.gate:
            self.inside.add(name)
            self.gate.notify_all()
            assert self.gate.wait_for(lambda: name not in self.held, 60)
            self.inside.discard(name)
        if (fault := self.faults.pop(name, None)) is not None:
            raise fault
        report("read", 0.5)
        self.takes.get(name, lambda: None)()
        module = nn.Module()
        self._allocate(device.name, size)
        weakref.finalize(module, self._free, device.name, size).atexit = False
        report("verify", 0.7)
        if self.hoard is not None:
            self.hoard.append(module)
        card = SimpleNamespace(revision=self.revisions.get(name, name), dtype="float32", anatomy=None)
        return LoadedModel(
            card=cast("Any", card),
            model=cast("Any", SimpleNamespace(module=module)),
            device=device,
            resident_bytes=size,
            parameters=size // 4,
            price=Price.linear(0.01, 0.001),
        )

    def wait_until_inside(self, name: str) -> None:
        with self.gate:
            assert self.gate.wait_for(lambda: name in self.inside, 60)

    def let_go(self, name: str) -> None:
        with self.gate:
            self.held.discard(name)
            self.gate.notify_all()

    def _allocate(self, device: str, size: int) -> None:
        with self.gate:
            self.devices.in_use[device] += size
            self.peak[device] = max(self.peak[device], self.devices.in_use[device])

    def _free(self, device: str, size: int) -> None:
        with self.gate:
            self.devices.in_use[device] -= size


class Noting:
    """Counts evictions and how loads ended."""

    def __init__(self) -> None:
        self.evictions: Counter[tuple[str, str]] = Counter()
        self.outcomes: Counter[tuple[str, str]] = Counter()

    def load_finished(self, model: str, outcome: str, seconds: float) -> None:
        self.outcomes[model, outcome] += 1

    def evicted(self, model: str, reason: str) -> None:
        self.evictions[model, reason] += 1


class Bounded:
    """A residency over fake models in a bounded memory."""

    def __init__(
        self,
        sizes: Mapping[str, int],
        *,
        budget: int | dict[str, int] | None = 150,
        devices: FakeDevices | None = None,
        pinned: tuple[str, ...] = (),
        on: Mapping[str, str] | None = None,
        replicas: Mapping[str, int] | None = None,
        caches: Mapping[str, int] | None = None,
        clock: Callable[[], float] | None = None,
        **limits: Any,
    ) -> None:
        self.devices = devices or FakeDevices("cpu")
        self.loader = SizedLoader(self.devices, sizes)
        self.noting = Noting()
        placed, copies = on or {}, replicas or {}
        models = {
            name: ModelSettings(
                source=f"dir:/{name}",
                pin=name in pinned,
                device=placed.get(name, "auto"),
                replicas=copies.get(name, 1),
                max_cache_bytes=(caches or {}).get(name),
            )
            for name in sizes
        }
        bounds = LimitSettings(**{"memory_bytes": budget, "min_residency_s": 0.0, **limits})
        extra = {} if clock is None else {"clock": clock}
        self.residency = Residency(
            models,
            self.loader,
            bounds,
            devices=self.devices,
            observers=Observers(loads=[self.noting]),
            **cast("Any", extra),
        )

    async def use(self, name: str, turns: int = 1) -> None:
        """Holds ``name`` for some turns of the loop and checks that it stays there meanwhile."""
        async with self.residency.lease(name) as model:
            for _ in range(turns):
                await asyncio.sleep(0)
                assert model in self.residency.residents(name), "a leased model was taken away"

    def close(self) -> None:
        for name in tuple(self.loader.held):
            self.loader.let_go(name)
        self.residency.close()


#: Makes what a test describes, and closes it afterwards.
Make = Callable[..., Bounded]


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


async def until(condition: Callable[[], bool]) -> None:
    """Lets other threads work until ``condition`` holds."""
    pause = asyncio.Event()
    for _ in range(int(PATIENCE_S / 0.005)):
        if condition():
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(pause.wait(), 0.005)
    raise AssertionError("it never came to that")


def state(bounded: Bounded, name: str) -> ModelState:
    return bounded.residency.status(name).state
