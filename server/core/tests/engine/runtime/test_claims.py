"""Whoever decides which model goes: never one that must stay, and never more than must."""

from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from lensd_api import LensdError
from lensd_server.engine.events import ModelState
from lensd_server.engine.models.claims import Claim, Go, MakeRoom, Wait, decide, is_further
from lensd_server.engine.models.room import Room
from lensd_server.engine.models.slot import Slot
from lensd_server.settings import ModelSettings
from server.core.tests.engine.runtime.bounded import FakeDevices

BUDGET = 100
NOW = 50.0

residents = st.lists(
    st.fixed_dictionaries(
        {
            "size": st.integers(1, 60),
            "leases": st.integers(0, 2),
            "pin": st.booleans(),
            "last_used": st.floats(0, NOW),
            "stays_until": st.sampled_from([0.0, NOW - 1, NOW + 5]),
            "device": st.sampled_from(["cuda:0", "cuda:1"]),
        }
    ),
    max_size=5,
)


def placed(found: list[dict[str, Any]]) -> tuple[Room, list[Slot]]:
    """Slots for as many of ``found`` as their devices hold."""
    room, slots = Room(FakeDevices("cuda:0", "cuda:1"), BUDGET), list[Slot]()
    for number, one in enumerate(found):
        if room.missing(one["device"], one["size"]):
            continue
        slot = Slot(f"m{number}", ModelSettings(source="dir:/m", pin=one["pin"]), state=ModelState.RESIDENT)
        slot.resident = cast("Any", SimpleNamespace())
        slot.reservation = room.reserve(one["device"], one["size"])
        slot.reservation.loaded = True
        slot.leases, slot.last_used = one["leases"], one["last_used"]
        slot.stays_until = one["stays_until"]
        slots.append(slot)
    return room, slots


@given(residents, st.integers(1, 120))
def test_only_what_may_go_goes_and_only_as_much_as_must(found: list[dict[str, Any]], need: int) -> None:
    room, slots = placed(found)
    wanted = Slot("wanted", ModelSettings(source="dir:/w"), state=ModelState.LOADING, order=1)
    claim = Claim(wanted, {"cuda:0": need, "cuda:1": need})
    movable = {
        device: sum(
            slot.reservation.size
            for slot in slots
            if slot.reservation and slot.reservation.device == device and not slot.settings.pin
        )
        for device in claim.needs
    }
    try:
        decision = decide(claim, [claim], [*slots, wanted], room, NOW)
    except LensdError:
        assert all(room.missing(device, need) > movable[device] for device in claim.needs)
        return
    if isinstance(decision, Go):
        assert room.missing(decision.device, need) == 0
    elif isinstance(decision, MakeRoom):
        assert all(room.missing(device, need) for device in claim.needs), "there was room already"
        sizes = [slot.reservation.size for slot in decision.victims if slot.reservation]
        assert sum(sizes) >= room.missing(decision.device, need)
        assert sum(sizes[:-1]) < room.missing(decision.device, need)
        for slot in decision.victims:
            assert not slot.settings.pin
            assert slot.stays_until <= NOW
            assert slot.reservation is not None
            assert slot.reservation.device == decision.device
    else:
        assert decision.until > NOW, "nothing else is there to wait for"


@given(residents, st.integers(1, 100), st.integers(1, 100))
def test_who_came_later_waits_while_the_first_does(
    found: list[dict[str, Any]], need: int, later_need: int
) -> None:
    room, slots = placed(found)
    first = Claim(Slot("first", ModelSettings(source="dir:/w"), order=1), {"cuda:0": need})
    later = Claim(Slot("later", ModelSettings(source="dir:/w"), order=2), {"cuda:0": later_need})
    decision = decide(later, [later, first], slots, room, NOW)
    assert decision == Wait("first, which was asked for first")


@given(residents, st.integers(1, 100))
def test_with_nothing_pinned_leased_or_new_there_is_always_a_way(
    found: list[dict[str, Any]], need: int
) -> None:
    room, slots = placed([{**one, "pin": False, "leases": 0, "stays_until": 0.0} for one in found])
    wanted = Slot("wanted", ModelSettings(source="dir:/w"), order=1)
    claim = Claim(wanted, {"cuda:0": need, "cuda:1": need})
    for _ in range(len(slots) + 1):
        decision = decide(claim, [claim], slots, room, NOW)
        if isinstance(decision, Go):
            return
        assert isinstance(decision, MakeRoom)
        for slot in decision.victims:
            assert slot.reservation is not None
            slot.reservation.end()
            slot.reservation = slot.resident = None
    raise AssertionError("it never fitted")


def test_a_replica_waits_only_for_others_that_are_on_their_way() -> None:
    settings = ModelSettings(source="dir:/m", replicas=2)
    wanted = Slot("m", settings, state=ModelState.LOADING, order=2)
    other = Slot("m", settings, state=ModelState.LOADING, order=1)
    assert is_further(wanted, [wanted, other])
    for over in (ModelState.FAILED, ModelState.COLD, ModelState.DRAINING):
        other.state = over
        assert not is_further(wanted, [wanted, other])
