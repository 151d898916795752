"""A reward function for verl: scores of its rollouts from the analyzer ``shop-r1``.

verl calls a function it finds by name in a file: one rollout at a time, many at once, from its reward loop
(0.8 and later), or a whole batch from the older batch manager. Neither verl nor torch is imported.
Invariant: what cannot be scored raises, or has the score that ``unscored`` says; never a made-up one.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from lensd_client.aio import AsyncClient
from lensd_client.errors import LensdError
from lensd_client.rollouts import is_passing, pause_s, reward_item
from lensd_client.trl import ShopR1Reward

#: Components of every scored rollout. Self-certainty is not among them: without a rationale there is none.
PARTS = ("format", "type", "attribute", "value", "rationale")


class NotScored(ValueError):
    """The server has no reward for a rollout; ``reason`` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"no reward: {reason}; set `unscored` to a number to go on with that instead")
        self.reason = reason


class ShopR1Score:
    """Total Shop-R1 rewards and their components, for verl.

    A file of two lines makes it known to verl, with ``reward.custom_reward_function.path`` naming the file::

        from lensd_client.verl import ShopR1Score
        compute_score = ShopR1Score("lensd:50051").compute_score

    verl hands over the completion and ``ground_truth``, the true action as a mapping or its JSON, but not the
    prompt: the dataset's ``extra_info`` has to hold it under ``prompt``, as text or messages.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        model: str = "",
        prompt: str = "prompt",
        params: Mapping[str, Any] | None = None,
        attempts: int = 5,
        unscored: float | None = None,
        connect: Callable[[str], AsyncClient] = AsyncClient,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """``prompt`` names the key of ``extra_info``, ``params`` are passed on to the analyzer.

        What the server refuses for now is sent again, ``attempts`` times in all. A rollout it cannot
        score raises :class:`NotScored`, or counts ``unscored`` where that is given.
        """
        if attempts < 1:
            raise ValueError("attempts must be at least 1")
        self._target, self._model, self._prompt = target, model, prompt
        self._params = dict(params or {})
        self._attempts, self._unscored = attempts, unscored
        self._connect, self._sleep = connect, sleep
        self._client: tuple[asyncio.AbstractEventLoop, AsyncClient] | None = None

    async def compute_score(
        self,
        data_source: str,
        solution_str: str,
        ground_truth: Any,
        extra_info: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> dict[str, float]:
        """What verl's reward loop awaits: ``score``, whether it is one, and :data:`PARTS`.

        Raises KeyError without a prompt in ``extra_info``, NotScored, LensdError when the server refuses
        the request or does not answer after all attempts.
        """
        item = reward_item(self._prompt_in(extra_info), solution_str, ground_truth)
        for attempt in range(1, self._attempts + 1):
            try:
                run = await self._connected().analyze(
                    "shop-r1", self._model, {**self._params, "items": [item]}, priority="batch"
                )
                return self._scored(next(iter(run["rewards"].rows())))
            except LensdError as refusal:
                if attempt == self._attempts or not is_passing(refusal):
                    raise
                # Spread out: hundreds of rollouts are refused at the same moment.
                await self._sleep(pause_s(refusal, attempt) * random.uniform(1.0, 1.5))
        raise AssertionError("unreachable")

    def compute_scores(
        self,
        data_sources: Sequence[str],
        solution_strs: Sequence[str],
        ground_truths: Sequence[Any],
        extra_infos: Sequence[Mapping[str, Any] | None],
        **_: Any,
    ) -> list[dict[str, float]]:
        """What verl's batch manager calls: the same for a whole batch, over one stream. Raises likewise."""
        prompts = [self._prompt_in(extra) for extra in extra_infos]
        reward = ShopR1Reward(self._target, model=self._model, params=self._params, attempts=self._attempts)
        try:
            rows = reward.score(prompts, solution_strs, ground_truths)
        finally:
            reward.close()
        return [self._scored(row) for row in rows]

    async def close(self) -> None:
        """Ends the connection; the next call opens another."""
        if self._client is not None:
            _, client = self._client
            self._client = None
            await client.close()

    def __getstate__(self) -> dict[str, Any]:
        # verl may send reward functions to other processes; a connection cannot go along.
        return {**self.__dict__, "_client": None}

    def _connected(self) -> AsyncClient:
        loop = asyncio.get_running_loop()
        if self._client is None or self._client[0] is not loop:
            self._client = (loop, self._connect(self._target))
        return self._client[1]

    def _prompt_in(self, extra: Mapping[str, Any] | None) -> Any:
        if extra is None or self._prompt not in extra:
            raise KeyError(
                f"extra_info has no {self._prompt!r}: verl does not hand over the prompt, so the dataset has to"
            )
        return extra[self._prompt]

    def _scored(self, row: Mapping[str, Any]) -> dict[str, float]:
        # The same keys for every rollout: verl lines them up.
        if row["total"] is not None:
            return {"score": float(row["total"]), "scored": 1.0, **{name: float(row[name]) for name in PARTS}}
        if self._unscored is None:
            raise NotScored(str(row["error"]))
        return {"score": self._unscored, "scored": 0.0, **dict.fromkeys(PARTS, 0.0)}
