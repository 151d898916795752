"""A ticket is cancelled once, and everybody who asked is told."""

import time

import pytest

from lensd_api import Cancelled, DeadlineExceeded
from lensd_server.engine.batching.ticket import Ticket


def test_the_first_cancel_counts() -> None:
    ticket = Ticket()
    assert ticket.cancel("first")
    assert not ticket.expire()
    with pytest.raises(Cancelled, match="first"):
        ticket.check()


def test_callbacks_are_called_once_even_when_they_come_late() -> None:
    ticket, told = Ticket(), []
    ticket.on_cancel(lambda: told.append("early"))
    ticket.cancel()
    ticket.cancel()
    ticket.on_cancel(lambda: told.append("late"))
    assert told == ["early", "late"]


def test_a_forgotten_callback_is_not_called() -> None:
    ticket, told = Ticket(), []

    def tell() -> None:
        told.append("told")

    ticket.on_cancel(tell)
    ticket.forget(tell)
    ticket.cancel()
    assert told == []


def test_a_passed_deadline_is_noticed_by_the_next_check() -> None:
    ticket = Ticket(deadline=time.monotonic() - 1)
    assert not ticket.cancelled
    with pytest.raises(DeadlineExceeded):
        ticket.check()
    assert ticket.cancelled


def test_every_raise_is_an_error_of_its_own() -> None:
    ticket = Ticket()
    ticket.cancel()
    assert ticket.error() is not ticket.error()
