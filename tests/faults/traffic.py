"""Callers that ask all the time, know the right answers, and remember how each request ended."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lensd_client import Client, Run
from lensd_client.errors import LensdError

MODEL = "llama"
PROMPTS = ("The capital of France is", "Mary gave the book to", "One two three four")
#: Between two tries of a caller that was refused, as a patient one makes it.
_PAUSE_S = 0.05
_PATIENCE_S = 60.0

Answer = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request. ``outcome`` is ``ok``, ``wrong`` or the code and reason of an error.

    ``accepted``: the server had taken it on, whatever became of it.
    """

    started: float
    ended: float
    outcome: str
    accepted: bool


@dataclass
class Traffic:
    """Attempts of all callers so far; ``address`` is where they ask."""

    address: str
    right: dict[str, Answer]
    attempts: list[Attempt] = field(default_factory=list[Attempt])
    changed: threading.Condition = field(default_factory=threading.Condition)
    stopped: threading.Event = field(default_factory=threading.Event)

    def since(self, moment: float) -> list[Attempt]:
        """Attempts that ended after ``moment``."""
        with self.changed:
            return [attempt for attempt in self.attempts if attempt.ended >= moment]

    def wait(self, count: int, since: float) -> None:
        """Waits until ``count`` requests that began after ``since`` were answered rightly."""
        deadline = time.monotonic() + _PATIENCE_S
        with self.changed:
            while sum(a.started >= since and a.outcome == "ok" for a in self.attempts) < count:
                left = deadline - time.monotonic()
                assert left > 0, f"nothing is served; the last attempts: {self.attempts[-5:]}"
                self.changed.wait(left)

    def pause_s(self, since: float) -> float:
        """The longest time after ``since`` in which no caller had an answer."""
        answered = sorted(a.ended for a in self.since(since) if a.outcome == "ok")
        moments = [since, *answered]
        return max((late - early for early, late in zip(moments, answered, strict=False)), default=0.0)

    def failures(self, since: float) -> Counter[str]:
        """What went wrong for callers after ``since``, and how often."""
        return Counter(a.outcome for a in self.since(since) if a.outcome != "ok")

    def unfinished(self, since: float) -> int:
        """How many requests that ended after ``since`` were accepted and not completed."""
        return sum(a.accepted and a.outcome != "ok" for a in self.since(since))

    def note(self, attempt: Attempt) -> None:
        """One more."""
        with self.changed:
            self.attempts.append(attempt)
            self.changed.notify_all()


def ask(client: Client, prompt: str, model: str = MODEL) -> Answer:
    """The contributions to a prompt's next token, complete or an error."""
    return _read(_begin(client, prompt, model))


def _begin(client: Client, prompt: str, model: str = MODEL) -> Run:
    return client.analyze("dla", model=model, params={"prompt": prompt, "unit": "head"}, timeout_s=30.0)


def _read(run: Run) -> Answer:
    return np.asarray(run["contributions"].to_dict()["value"], dtype=np.float64)


def is_right(answer: Answer, right: Answer) -> bool:
    """Whether it is the same to what batching may change."""
    return answer.shape == right.shape and bool(np.abs(answer - right).max() <= 1e-5 * np.abs(right).max())


@contextmanager
def traffic(address: Callable[[], str], right: dict[str, Answer], callers: int = 2) -> Iterator[Traffic]:
    """``callers`` that ask until the context ends."""
    noted = Traffic(address(), right)

    def call(number: int) -> None:
        while not noted.stopped.is_set():
            # A new connection after every failure, so that it is the server that is timed.
            with Client(address()) as client:
                while not noted.stopped.is_set():
                    prompt = PROMPTS[number % len(PROMPTS)]
                    started = time.monotonic()
                    run = _begin(client, prompt)
                    try:
                        outcome = "ok" if is_right(_read(run), right[prompt]) else "wrong"
                    except LensdError as error:
                        outcome = f"{error.code} {error.reason}".strip()
                    noted.note(Attempt(started, time.monotonic(), outcome, run.accepted is not None))
                    if outcome != "ok":
                        noted.stopped.wait(_PAUSE_S)
                        break

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield noted
    finally:
        noted.stopped.set()
        for thread in threads:
            thread.join()
