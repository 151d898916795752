"""The client for asyncio, the twin of :mod:`lensd_client.client`: same methods, same arguments."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from functools import cached_property
from itertools import chain
from types import TracebackType
from typing import Any, Self, cast

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from lensd_client import _catalog_convert as convert
from lensd_client import catalog
from lensd_client._base import ClientBase, single_message
from lensd_client._stubs import Stubs
from lensd_client.errors import LensdError
from lensd_client.many import InFlight, Outcome, farewell, split
from lensd_client.requests import Priority, Request, merge_params
from lensd_client.runs import AsyncRun
from lensd_proto.v1 import analysis_pb2, analyzers_pb2, artifacts_pb2, models_pb2, server_pb2


class AsyncClient(ClientBase):
    """Runs analyses on a lensd server, on the event loop it is first used on.

    Close it, or use ``async with``.

    Every method raises a :class:`lensd_client.errors.LensdError` when the server refuses or
    cannot be reached.
    """

    def analyze(
        self,
        analyzer: str,
        model: str = "",
        params: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        tensors: Mapping[str, Any] | None = None,
        priority: Priority = "interactive",
        request_id: str | None = None,
        **keywords: Any,
    ) -> AsyncRun:
        """Starts an analysis and returns at once.

        Parameters may be given as keywords too. ``model`` may stay empty when the server has
        just one, or the analysis needs none. ``tensors`` are dense inputs: anything
        ``numpy.asarray`` takes. Raises TypeError or ValueError for what cannot be sent;
        errors of the server are raised when the run is read.
        """
        request = Request(
            analyzer, model, merge_params(params, keywords), tensors or {}, priority, timeout_s, request_id
        )
        message, attempts = single_message(request), self._attempts(timeout_s)
        return AsyncRun(
            lambda: self._main.analysis.Analyze(message, **self._options(attempts)), attempts, self._explain
        )

    def analyze_many(self, requests: Iterable[Request], *, max_in_flight: int = 16) -> AsyncIterator[Outcome]:
        """Runs many analyses over one stream; outcomes come as they end, in any order.

        At most ``max_in_flight`` run at once, and no more than the server allows on one stream;
        ``requests`` is read only as fast as that. One that fails is an outcome with an ``error``,
        its neighbours are unharmed. Leaving the loop cancels what still runs.
        """
        return self._analyze_many(InFlight(requests, max_in_flight))

    async def _analyze_many(self, flight: InFlight) -> AsyncIterator[Outcome]:
        attempts, starts = self._attempts(), flight.due()
        rest: list[analysis_pb2.AnalyzeManyRequest] = []
        while True:
            feed = _Feed(flight)
            call = self._main.analysis.AnalyzeMany(feed.messages(), **self._options(attempts))
            try:
                feed.send(starts)
                async for message in call:
                    attempts.commit()
                    feed.send(rest)
                    rest = []
                    outcome = flight.feed(message)
                    if outcome is not None:
                        feed.send(chain(farewell(outcome, message.response.request_id), flight.due()))
                        yield outcome
                flight.finish()
                return
            except grpc.RpcError as error:
                pause_s = attempts.pause_s(error)
                if pause_s is None:
                    raise self._explain(error) from error
            finally:
                call.cancel()
            await asyncio.sleep(pause_s)
            # One at first, since the status of a stream that is refused while it is written to is lost.
            starts, rest = split(flight.again())

    async def models(self) -> list[catalog.Model]:
        """The configured models, by name."""
        answer = await self._ask(self._main.models.ListModels, models_pb2.ListModelsRequest())
        return [convert.model(m) for m in answer.models]

    async def model(self, name: str) -> catalog.Model:
        """One model, with its anatomy when it is resident. Raises NotFound."""
        answer = await self._ask(self._main.models.GetModel, models_pb2.GetModelRequest(name=name))
        return convert.model(answer.model)

    async def load(self, name: str) -> AsyncIterator[catalog.LoadStep]:
        """Makes a model resident, step by step, starting when the iteration does. Admin scope."""
        request = models_pb2.LoadModelRequest(name=name)
        async for message in self._stream(self._ops.models.LoadModel, request, self._explain_admin):
            yield convert.load_step(message)

    async def unload(self, name: str) -> catalog.Model:
        """Waits for the model's analyses and frees its memory. Admin scope."""
        request = models_pb2.UnloadModelRequest(name=name)
        return convert.model((await self._ask_admin(self._ops.models.UnloadModel, request)).model)

    async def watch_models(self) -> AsyncIterator[catalog.Model]:
        """The state of every model, then every change, until the iteration is left."""
        request = models_pb2.WatchModelsRequest()
        async for message in self._stream(self._main.models.WatchModels, request, self._explain):
            yield convert.model(message.model)

    async def analyzers(self) -> list[catalog.Analyzer]:
        """The analyzers that answer, by name, without schema, results and examples."""
        answer = await self._ask(self._main.analyzers.ListAnalyzers, analyzers_pb2.ListAnalyzersRequest())
        return [convert.analyzer(a) for a in answer.analyzers]

    async def plugins(self) -> list[catalog.Plugin]:
        """Every installed plugin, broken ones included."""
        answer = await self._ask(self._main.analyzers.ListAnalyzers, analyzers_pb2.ListAnalyzersRequest())
        return [convert.plugin(p) for p in answer.plugins]

    async def analyzer(self, name: str) -> catalog.Analyzer:
        """One analyzer with schema, results, examples and which models can serve it."""
        request = analyzers_pb2.GetAnalyzerRequest(name=name)
        return convert.analyzer((await self._ask(self._main.analyzers.GetAnalyzer, request)).analyzer)

    async def artifacts(self) -> list[catalog.Artifact]:
        """What analyzers have stored, by name, newest version first."""
        answer = await self._ask(self._main.artifacts.ListArtifacts, artifacts_pb2.ListArtifactsRequest())
        return [convert.artifact(a) for a in answer.artifacts]

    async def artifact(self, name: str) -> catalog.Artifact:
        """One artifact, ``name`` for the newest or ``name@version``."""
        request = artifacts_pb2.GetArtifactRequest(name=name)
        return convert.artifact((await self._ask(self._main.artifacts.GetArtifact, request)).artifact)

    async def delete_artifact(self, name: str) -> None:
        """Deletes ``name@version``. Admin scope."""
        request = artifacts_pb2.DeleteArtifactRequest(name=name)
        await self._ask_admin(self._ops.artifacts.DeleteArtifact, request)

    async def server_info(self) -> catalog.ServerInfo:
        """Versions, limits and features of the server."""
        answer = await self._ask(self._main.server.GetServerInfo, server_pb2.GetServerInfoRequest())
        return convert.server_info(answer)

    async def load_status(self) -> catalog.Load:
        """How busy the server is."""
        return convert.load(await self._ask(self._main.server.GetLoad, server_pb2.GetLoadRequest()))

    async def health(self, service: str = "") -> catalog.HealthStatus:
        """Health of the server, of a service (``lensd.v1.AnalysisService``) or of a model.

        A model is ``lensd.v1.Model/NAME``. Raises NotFound for a service nobody knows.
        """
        answer = await self._ask(self._main.health.Check, health_pb2.HealthCheckRequest(service=service))
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        return cast("catalog.HealthStatus", name)

    async def analyses(self) -> list[catalog.RunningAnalysis]:
        """The running analyses, oldest first. Admin scope."""
        answer = await self._ask_admin(self._ops.server.ListAnalyses, server_pb2.ListAnalysesRequest())
        return [convert.running(a) for a in answer.analyses]

    async def release_plugin(self, distribution: str) -> bool:
        """Lets a quarantined plugin's analyzers answer again; False when it was not quarantined. Admin scope."""
        request = analyzers_pb2.ReleasePluginRequest(distribution=distribution)
        return (await self._ask_admin(self._ops.analyzers.ReleasePlugin, request)).released

    async def cancel_analysis(self, request_id: str) -> bool:
        """Stops anybody's analysis; False when no such one was running. Admin scope."""
        request = server_pb2.CancelAnalysisRequest(request_id=request_id)
        return (await self._ask_admin(self._ops.server.CancelAnalysis, request)).cancelled

    async def wait_until_ready(self, timeout_s: float = 30.0) -> None:
        """Waits for the connection. Raises ServerUnavailable when there is none in time."""
        try:
            await asyncio.wait_for(self._channel.channel_ready(), timeout_s)
        except TimeoutError:
            raise self._not_ready(timeout_s) from None

    async def close(self) -> None:
        """Ends the connections; what still runs is cancelled."""
        for name in ("_channel", "_admin_channel"):
            if name in self.__dict__:
                await self.__dict__[name].close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, method: Any, request: Any) -> Any:
        return await self._unary(method, request, self._explain)

    async def _ask_admin(self, method: Any, request: Any) -> Any:
        return await self._unary(method, request, self._explain_admin)

    async def _unary(self, method: Any, request: Any, explain: Callable[[Any], LensdError]) -> Any:
        attempts = self._attempts()
        while True:
            try:
                return await method(request, **self._options(attempts))
            except grpc.RpcError as error:
                pause_s = attempts.pause_s(error)
                if pause_s is None:
                    raise explain(error) from error
            await asyncio.sleep(pause_s)

    async def _stream(
        self, method: Any, request: Any, explain: Callable[[Any], LensdError]
    ) -> AsyncIterator[Any]:
        attempts = self._attempts()
        while True:
            call = method(request, **self._options(attempts))
            try:
                async for message in call:
                    attempts.commit()
                    yield message
                return
            except grpc.RpcError as error:
                pause_s = attempts.pause_s(error)
                if pause_s is None:
                    raise explain(error) from error
            finally:
                call.cancel()
            await asyncio.sleep(pause_s)

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        return self._connection.open_aio()

    @cached_property
    def _admin_channel(self) -> grpc.aio.Channel:
        return self._admin.open_aio()

    @cached_property
    def _main(self) -> Stubs:
        return Stubs(self._channel)

    @cached_property
    def _ops(self) -> Stubs:
        return self._main if self._admin is self._connection else Stubs(self._admin_channel)


class _Feed:
    """What is still to be sent on a stream of many analyses."""

    def __init__(self, flight: InFlight) -> None:
        self._flight = flight
        self._queue: asyncio.Queue[analysis_pb2.AnalyzeManyRequest | None] = asyncio.Queue()

    def send(self, messages: Iterable[analysis_pb2.AnalyzeManyRequest]) -> None:
        for message in messages:
            self._queue.put_nowait(message)
        if self._flight.is_done:
            self._queue.put_nowait(None)

    async def messages(self) -> AsyncIterator[analysis_pb2.AnalyzeManyRequest]:
        while (message := await self._queue.get()) is not None:
            yield message
