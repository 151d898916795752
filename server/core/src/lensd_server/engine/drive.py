"""Drives an analyzer's generator to its end, wherever it has to run, and always closes it."""

import asyncio
import contextvars
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn, TypeVar, cast, get_args

from torch import Tensor

from lensd_api import Analyzer, BaseParams, LensdError
from lensd_api.analyzer import is_async
from lensd_api.results import Result
from lensd_server.engine.artifacts import Origin
from lensd_server.engine.checkpoints import request_key
from lensd_server.engine.compute import ComputeThread
from lensd_server.engine.context import AsyncContext, BlockingAnalysisContext
from lensd_server.engine.events import RegisteredAnalyzer
from lensd_server.engine.handle import AsyncHandle, BlockingHandle
from lensd_server.engine.models.residency import ResidentModel
from lensd_server.engine.running import Analysis
from lensd_server.engine.soundness import ResultCheck, takes_long
from lensd_server.engine.storage import BlockingArtifacts, BlockingCheckpoint, Storage
from lensd_server.engine.wakeup import post
from lensd_server.engine.workspace import SetAside, Workplaces
from lensd_server.settings import LimitSettings

#: How long an async analyzer may take to clean up after it was closed.
CLOSE_S = 10.0

_RESULTS: tuple[type, ...] = get_args(Result)
_END = object()

T = TypeVar("T")


class Driver:
    """Runs analyzers with what every analysis is given; ``set_aside`` as at :class:`Workplaces`."""

    def __init__(
        self, storage: Storage, computing: ComputeThread, set_aside: SetAside, limits: LimitSettings
    ) -> None:
        self._storage, self._computing, self._limits = storage, computing, limits
        self._set_aside = set_aside

    async def drive(
        self,
        analysis: Analysis,
        registered: RegisteredAnalyzer,
        params: BaseParams,
        model: ResidentModel | None,
    ) -> None:
        """Puts every result of ``registered`` into the analysis's channel. Call it on the analysis loop.

        Returns, or raises, only when the analyzer's code has stopped. Raises LensdError.
        """
        ticket, channel, analyzer = analysis.ticket, analysis.channel, registered.analyzer
        tensors: Mapping[str, Tensor] = analysis.request.tensors
        origin = _origin(registered, model)
        stored = BlockingArtifacts(self._storage.artifacts, origin)
        saved = BlockingCheckpoint(
            self._storage.checkpoints,
            lambda: request_key(origin, params, tensors),
            analysis.request.caller,
        )
        device = None if model is None else model.loaded.device
        places = Workplaces(self._computing, device, self._set_aside)
        common = (ticket, channel, tensors, stored, saved, places)
        check = ResultCheck(
            registered.name,
            message_bytes=self._limits.max_response_bytes,
            part_bytes=self._limits.max_part_bytes,
        )
        if is_async(analyzer):
            handle = None if model is None else AsyncHandle(model.loaded.card, model.batcher, ticket)
            await _follow(analysis, analyzer, params, AsyncContext(*common, handle), check)
        else:
            blocking = None if model is None else BlockingHandle(model.loaded.card, model.batcher, ticket)
            context = BlockingAnalysisContext(*common, blocking)
            await on_own_thread(analysis, lambda: _pump(analysis, analyzer, params, context, check))
        with analysis.foreign():
            check.finish()
        saved.discard()


def _origin(registered: RegisteredAnalyzer, model: ResidentModel | None) -> Origin:
    card = None if model is None else model.loaded.card
    return Origin(
        distribution=registered.distribution,
        analyzer=registered.analyzer.name,
        version=registered.version,
        model="" if card is None else card.name,
        revision="" if card is None else card.revision,
    )


async def _follow(
    analysis: Analysis, analyzer: Analyzer, params: BaseParams, context: AsyncContext, check: ResultCheck
) -> None:
    with analysis.foreign():
        results = cast("AsyncGenerator[Any, None]", analyzer.analyze(params, context))
    try:
        while True:
            with analysis.foreign():
                result = _checked(await anext(results, _END))
            analysis.ticket.check()
            if result is None:
                return
            with analysis.foreign():
                long = takes_long(result)
                found = await asyncio.to_thread(check.found, result) if long else check.found(result)
            await analysis.channel.put(found)
    finally:
        # Its clean-up may fail or hang; what it had found is not worse for it.
        with suppress(LensdError, TimeoutError):
            with analysis.foreign():
                async with asyncio.timeout(CLOSE_S):
                    await results.aclose()


def _pump(
    analysis: Analysis,
    analyzer: Analyzer,
    params: BaseParams,
    context: BlockingAnalysisContext,
    check: ResultCheck,
) -> None:
    with analysis.foreign():
        results = cast("Generator[Any, None, None]", analyzer.analyze(params, context))
    try:
        while True:
            analysis.ticket.check()
            with analysis.foreign():
                result = _checked(next(results, _END))
            analysis.ticket.check()
            if result is None:
                return
            with analysis.foreign():
                found = check.found(result)
            analysis.channel.put_blocking(found)
    finally:
        with suppress(LensdError):
            with analysis.foreign():
                results.close()


async def on_own_thread(analysis: Analysis, work: Callable[[], T]) -> T:
    """Runs ``work`` on a thread of its own and waits until it has ended, even when cancelled.

    Each plain analyzer has a thread to itself, since one may loop for long or wait for a slow
    reader; admission bounds how many there are. Daemon threads do not keep the process alive.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Callable[[], T]] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # handed to the loop, which raises it
            post(loop, ended.set_result, partial(_raise, error))
        else:
            post(loop, ended.set_result, lambda: result)

    context = contextvars.copy_context()
    name = f"lensd-analysis-{analysis.request.request_id}"
    threading.Thread(target=context.run, args=(run,), name=name, daemon=True).start()
    while not ended.done():
        # A cancel has reached the ticket, which the thread looks at; here it must not cut the wait short.
        with suppress(asyncio.CancelledError):
            await asyncio.wait([ended])
    return ended.result()()


def _raise(error: BaseException) -> NoReturn:
    raise error


def _checked(result: object) -> Result | None:
    """``result`` if it is one, ``None`` at the end. Raises TypeError."""
    if result is _END:
        return None
    if not isinstance(result, _RESULTS):
        raise TypeError(f"an analyzer yields lensd_api results, not {type(result).__name__}")
    return cast("Result", result)
