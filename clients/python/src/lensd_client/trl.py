"""A reward function for TRL's ``GRPOTrainer``: a whole step of rollouts over one stream.

Neither TRL nor torch is imported: the trainer calls an object with lists and gets a list back. Checked
against TRL 1.16. Invariant: one reward a completion, in their order, or ``None`` where there is none,
which the trainer leaves out; never a made-up number.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lensd_client.client import Client
from lensd_client.errors import LensdError
from lensd_client.many import Outcome
from lensd_client.requests import Request
from lensd_client.rollouts import COMPONENTS, is_passing, pause_s, reward_item

_log = logging.getLogger("lensd_client.trl")

#: Characters of one request, so that it stays far below the 4 MiB a server accepts by default.
MAX_REQUEST_CHARS = 512 * 1024


class ShopR1Reward:
    """Total Shop-R1 rewards of completions, from the analyzer ``shop-r1`` of a lensd server.

    ::

        trainer = GRPOTrainer(model, reward_funcs=ShopR1Reward("lensd:50051"), train_dataset=dataset)

    The dataset has, beside ``prompt``, a column ``reference`` with the true action as a mapping (or its
    JSON): ``{"type": "click", "name": "buy"}``. Prompts and completions may be texts or
    conversations. Means of the components go to the trainer's metrics as ``shop_r1/...``.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        model: str = "",
        reference: str = "reference",
        params: Mapping[str, Any] | None = None,
        items_per_request: int = 16,
        max_in_flight: int = 8,
        attempts: int = 5,
        connect: Callable[[str], Client] = Client,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``reference`` names the dataset's column, ``params`` are passed on to the analyzer.

        A step is cut into requests of ``items_per_request``, of which ``max_in_flight`` run at once:
        the next is sent when one ends. What the server refuses for now is sent again, ``attempts``
        times in all. Raises ValueError for numbers below one.
        """
        if min(items_per_request, max_in_flight, attempts) < 1:
            raise ValueError("items_per_request, max_in_flight and attempts must be at least 1")
        self._target, self._model, self._reference = target, model, reference
        self._params = dict(params or {})
        self._items_per_request, self._max_in_flight, self._attempts = (
            items_per_request,
            max_in_flight,
            attempts,
        )
        self._connect, self._sleep = connect, sleep
        self._client: Client | None = None
        self.__name__ = "shop_r1"

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """What TRL calls: one total a completion, ``None`` for one the server cannot score.

        Raises ValueError when the dataset lacks the reference column, LensdError when the server
        refuses the request or does not answer after all attempts.
        """
        if self._reference not in columns:
            raise ValueError(f"the dataset has no column {self._reference!r}; it has {', '.join(columns)}")
        rows = self.score(prompts, completions, columns[self._reference])
        if (log_metric := columns.get("log_metric")) is not None:
            _log_means(rows, log_metric)
        return [row["total"] for row in rows]

    def score(
        self, prompts: Sequence[Any], completions: Sequence[Any], references: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """The rows of ``rewards``, one a completion in order, with every component.

        ``item`` counts within a request. Raises as calling does.
        """
        items = [
            reward_item(prompt, completion, reference)
            for prompt, completion, reference in zip(prompts, completions, references, strict=True)
        ]
        requests = list(self._requests(items))
        tables = self._run(requests)
        rows = [row for request in range(len(requests)) for row in tables[request]]
        _report_failures(rows)
        return rows

    def close(self) -> None:
        """Ends the connection; the next call opens another."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def __getstate__(self) -> dict[str, Any]:
        # A trainer may send reward functions to other processes; a connection cannot go along.
        return {**self.__dict__, "_client": None}

    def _requests(self, items: Sequence[dict[str, Any]]) -> Iterator[Request]:
        part: list[dict[str, Any]] = []
        chars = 0
        for item in items:
            own = len(json.dumps(item, ensure_ascii=False))
            if part and (len(part) == self._items_per_request or chars + own > MAX_REQUEST_CHARS):
                yield self._request(part)
                part, chars = [], 0
            part.append(item)
            chars += own
        if part:
            yield self._request(part)

    def _request(self, items: list[dict[str, Any]]) -> Request:
        return Request("shop-r1", self._model, {**self._params, "items": items}, priority="batch")

    def _run(self, requests: Sequence[Request]) -> dict[int, list[dict[str, Any]]]:
        """Rows by index of the request; what fails for now is sent again."""
        done: dict[int, list[dict[str, Any]]] = {}
        for attempt in range(1, self._attempts + 1):
            waiting = [index for index in range(len(requests)) if index not in done]
            refusal: LensdError | None = None
            try:
                for outcome in self._stream([requests[index] for index in waiting]):
                    if outcome.error is None:
                        done[waiting[outcome.index]] = list(outcome["rewards"].rows())
                    elif not is_passing(outcome.error):
                        raise outcome.error
                    else:
                        refusal = outcome.error
            except LensdError as error:  # the stream itself broke, or one request is refused for good
                if not is_passing(error):
                    raise
                refusal = error
            if refusal is None:
                break
            if attempt == self._attempts:
                raise refusal
            self._sleep(pause_s(refusal, attempt))
        return done

    def _stream(self, requests: Sequence[Request]) -> Iterator[Outcome]:
        if self._client is None:
            self._client = self._connect(self._target)
        return self._client.analyze_many(requests, max_in_flight=self._max_in_flight)


def _log_means(rows: Sequence[Mapping[str, Any]], log_metric: Callable[[str, float], None]) -> None:
    for name in COMPONENTS:
        values = [row[name] for row in rows if row[name] is not None]
        if values:
            log_metric(f"shop_r1/{name}", sum(values) / len(values))


def _report_failures(rows: Sequence[Mapping[str, Any]]) -> None:
    reasons = Counter(str(row["error"]) for row in rows if row["error"])
    if reasons:
        said = ", ".join(f"{reason} ({count})" for reason, count in reasons.items())
        _log.warning("%d of %d completions have no reward: %s", reasons.total(), len(rows), said)
