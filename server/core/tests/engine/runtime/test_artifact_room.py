"""How much room artifacts have together, and how seldom it is counted."""

import pytest

from lensd_api import Exhausted
from lensd_server.engine.artifact_room import COUNTED_FOR_S, ArtifactRoom


class Place:
    """Holds ``there`` bytes, at a time that a test moves."""

    def __init__(self, there: int) -> None:
        self.there, self.counts, self.now = there, 0, 0.0

    def count(self) -> int:
        self.counts += 1
        return self.there

    def room(self, max_bytes: int | None) -> ArtifactRoom:
        return ArtifactRoom(max_bytes, self.count, lambda: self.now)


def store(room: ArtifactRoom, size: int) -> None:
    with room.take("a", size):
        pass


def test_it_is_counted_once_a_minute_however_much_is_written() -> None:
    place = Place(100)
    room = place.room(1000)
    for _ in range(50):
        store(room, 10)
    assert place.counts == 1
    place.there = 600
    place.now += COUNTED_FOR_S + 1
    store(room, 10)
    assert place.counts == 2


def test_what_was_written_and_removed_since_is_known_without_counting() -> None:
    place = Place(100)
    room = place.room(200)
    store(room, 100)
    with pytest.raises(Exhausted, match="take 200 of the 200"):
        store(room, 1)
    room.give_back(50)
    store(room, 50)
    assert place.counts == 1


def test_what_others_wrote_or_removed_is_known_after_a_minute() -> None:
    place = Place(200)
    room = place.room(200)
    with pytest.raises(Exhausted):
        store(room, 1)
    place.there = 0
    place.now += COUNTED_FOR_S + 1
    store(room, 200)


def test_what_is_being_written_while_it_is_counted_has_its_room() -> None:
    place = Place(0)
    room = place.room(100)
    with room.take("a", 80):
        place.now += COUNTED_FOR_S + 1
        with pytest.raises(Exhausted, match="take 80 of the 100"):
            store(room, 30)


def test_without_a_bound_nothing_is_counted() -> None:
    place = Place(0)
    store(place.room(None), 10**15)
    assert place.counts == 0
