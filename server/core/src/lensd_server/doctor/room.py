"""Memory: are the limits of devices that exist, does each model fit, and do those that are preloaded fit together?

By the same predictions and budgets as the daemon's own. Headers are read, no weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from lensd_api import LoadFailed
from lensd_server.doctor.finding import Finding, Verdict
from lensd_server.doctor.models import local_checkpoint
from lensd_server.settings import ModelSettings, Settings

if TYPE_CHECKING:
    from lensd_server.engine.device import Devices
    from lensd_server.engine.models.room import Room

_MEND = "raise limits.memory_bytes if there is more memory, or choose a smaller dtype or another device"

#: Bytes that a model needs on each device it may be on.
Needs = Mapping[str, int]


def examine_room(settings: Settings) -> Iterator[Finding]:
    """One finding for limits of devices that are not here, one a model whose size can be known, and one for
    those that are preloaded together."""
    try:
        from lensd_server.engine.device import Devices
        from lensd_server.engine.models.room import Room
    except Exception:  # a torch that does not work is reported by itself
        return
    devices = Devices()
    room = Room(_Memory(devices), settings.limits.memory_bytes)
    yield from _absent(settings.limits.memory_bytes, devices.names)
    preloaded: dict[str, Needs] = {}
    unknown: list[str] = []
    for name, model in settings.models.items():
        try:
            needs = _needs(model, devices, room)
        except LoadFailed as error:
            yield Finding(_what(name), Verdict.BROKEN, error.message, "fetch or save the checkpoint again")
            continue
        if needs:
            yield _alone(name, needs, room)
        if model.preload and needs and _fits_budget(needs, room):
            preloaded[name] = needs
        elif model.preload and not needs:
            unknown.append(name)
    if len(preloaded) > 1:
        yield _together(preloaded, unknown, room)


def _absent(limits: int | Mapping[str, int] | None, present: Sequence[str]) -> Iterator[Finding]:
    """A note when limits are of devices that this machine does not have."""
    named = limits if isinstance(limits, Mapping) else {}
    kinds = {device.partition(":")[0] for device in present}
    absent = [name for name in named if name not in kinds.union(present)]
    if absent:
        yield Finding(
            "limits.memory_bytes",
            Verdict.NOTE,
            f"limits {', '.join(absent)}, which this machine does not have; it has {', '.join(present)}",
            "name devices that it has; in a container, check that GPUs are passed to it",
        )


class _Memory:
    """What devices say about themselves; one that cannot be asked says nothing, and is reported by itself."""

    def __init__(self, devices: "Devices") -> None:
        self._devices = devices

    def free_bytes(self, device: str) -> int | None:
        """See :class:`lensd_server.engine.models.room.Memory`."""
        try:
            return self._devices.free_bytes(device)
        except Exception:  # a torch or driver that does not fit this machine raises all kinds of things
            return None


def _what(name: str) -> str:
    return f"memory for {name}"


def _needs(model: ModelSettings, devices: "Devices", room: "Room") -> Needs:
    """Nothing where the files or the device are not here, which is reported elsewhere. Raises LoadFailed for
    files that are here and damaged."""
    from lensd_server.engine.device import CACHE_BYTES, choose_dtype
    from lensd_server.engine.models.sizing import cache_bytes, needed_bytes

    try:
        checkpoint = local_checkpoint(model.source)
        allowed = devices.candidates(model.device)
    except LoadFailed:
        return {}
    if checkpoint is None:
        return {}
    return {
        name: needed_bytes(checkpoint, choose_dtype(model.dtype, on_cpu=name == "cpu"))
        + cache_bytes(model.max_cache_bytes, CACHE_BYTES[name.partition(":")[0]], room.budget(name))
        for name in allowed
    }


def _alone(name: str, needs: Needs, room: "Room") -> Finding:
    """Whether the model fits where nothing else is."""
    device = _roomiest(needs, room)
    needed, budget = needs[device], room.budget(device)
    text = f"needs {_mib(needed)} on {device}"
    if budget is None:
        return Finding(_what(name), Verdict.FINE, f"{text}, where nobody says what there is")
    if not _fits_budget(needs, room):
        return Finding(
            _what(name),
            Verdict.BROKEN,
            f"{text}, and all models together may have {_mib(budget)}: it can never be loaded",
            _MEND,
        )
    if lacking := room.lacking(device, needed):
        return Finding(
            _what(name),
            Verdict.NOTE,
            f"{text}, where only {_mib(needed - lacking)} are free now",
            "stop what uses the rest, or it cannot be loaded",
        )
    return Finding(_what(name), Verdict.FINE, f"{text}, of {_mib(budget)}")


def _together(preloaded: Mapping[str, Needs], unknown: list[str], room: "Room") -> Finding:
    """Sets memory aside as the daemon would, one after another."""
    what = "memory for preloaded models"
    placed: dict[str, list[str]] = {}
    homeless: list[str] = []
    for name, needs in preloaded.items():
        device = _roomiest(needs, room)
        if short := _short_of(needs, device, room):
            left = f"of which {_mib(needs[device] - short)} are left beside {_names(placed.get(device, []))}"
            homeless.append(f"{name} needs {_mib(needs[device])} on {device}, {left}")
        else:
            room.reserve(device, needs[device])
            placed.setdefault(device, []).append(name)
    uncounted = f"; not counted, since not here yet: {', '.join(unknown)}" if unknown else ""
    if homeless:
        text = f"they do not fit together: {'; '.join(homeless)}{uncounted}"
        return Finding(what, Verdict.BROKEN, text, f"preload fewer of them; or {_MEND}")
    taken = "; ".join(
        f"{_names(names)} take {_mib(room.reserved(device))} on {device}" for device, names in placed.items()
    )
    return Finding(what, Verdict.FINE, f"{taken}{uncounted}")


def _fits_budget(needs: Needs, room: "Room") -> bool:
    return any((budget := room.budget(device)) is None or need <= budget for device, need in needs.items())


def _roomiest(needs: Needs, room: "Room") -> str:
    """The device that lacks least, or else has most left."""

    def room_on(device: str) -> tuple[int, float]:
        left = room.left(device)
        return -_short_of(needs, device, room), float("inf") if left is None else left

    return max(needs, key=room_on)


def _short_of(needs: Needs, device: str, room: "Room") -> int:
    return max(room.missing(device, needs[device]), room.lacking(device, needs[device]))


def _names(names: list[str]) -> str:
    return " and ".join(names) or "nothing"


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.1f} MiB"
