"""Room that is waited for, and what is not."""

import asyncio

import pytest

from lensd_api import (
    CallerShareTaken,
    DeviceOutOfMemory,
    Exhausted,
    LensdError,
    QueueFull,
    QuotaExceeded,
    TooLarge,
    patiently,
)

SHARE = CallerShareTaken(caller="me", limit=48, unit="waiting rows", retry_after_s=0.0)
QUOTA = QuotaExceeded(caller="me", quota="rows_per_minute", limit=1, unit="rows", retry_after_s=0.0)


class Queue:
    """Refuses with each of ``errors`` before it answers."""

    def __init__(self, *errors: LensdError) -> None:
        self.errors = list(errors)
        self.asked = 0

    async def forward(self, rows: int, *, capture: str) -> tuple[int, str]:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return rows, capture


async def test_what_finds_no_room_is_asked_for_again() -> None:
    queue = Queue(QueueFull("full", retry_after_s=0.0), SHARE)
    assert await patiently(queue.forward, 3, capture="all") == (3, "all")
    assert queue.asked == 3


@pytest.mark.parametrize("error", [QUOTA, TooLarge("never"), DeviceOutOfMemory("no"), Exhausted("disk")])
async def test_what_does_not_pass_by_itself_is_raised(error: LensdError) -> None:
    queue = Queue(error)
    with pytest.raises(type(error)):
        await patiently(queue.forward, 3, capture="all")
    assert queue.asked == 1


async def test_the_pause_is_as_predicted_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    queue = Queue(*(QueueFull("full", retry_after_s=after) for after in (0.25, 60.0, None)))
    await patiently(queue.forward, 3, capture="all")
    assert pauses == [0.25, 2.0, 2.0]
