"""The client for threads. :mod:`lensd_client.aio` is its twin."""

import queue
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from types import TracebackType
from typing import Any, Self, cast

import grpc
from grpc_health.v1 import health_pb2

from lensd_client import _catalog_convert as convert
from lensd_client import catalog
from lensd_client._base import ClientBase, single_message
from lensd_client._stubs import Stubs
from lensd_client.errors import LensdError
from lensd_client.many import InFlight, Outcome, farewell
from lensd_client.requests import Priority, Request, merge_params
from lensd_client.runs import Run
from lensd_proto.v1 import analysis_pb2, analyzers_pb2, artifacts_pb2, models_pb2, server_pb2


class Client(ClientBase):
    """Runs analyses on a lensd server. Threads may share one; close it, or use ``with``.

    Every method raises a :class:`lensd_client.errors.LensdError` when the server refuses or
    cannot be reached.
    """

    def _open(self) -> None:
        self._channel = self._connection.open()
        self._main = Stubs(self._channel)
        has_own = self._admin is not self._connection
        self._admin_channel = self._admin.open() if has_own else self._channel
        self._ops = Stubs(self._admin_channel) if has_own else self._main

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
    ) -> Run:
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
        return Run(
            lambda: self._main.analysis.Analyze(message, **self._options(attempts)), attempts, self._explain
        )

    def analyze_many(self, requests: Iterable[Request], *, max_in_flight: int = 16) -> Iterator[Outcome]:
        """Runs many analyses over one stream; outcomes come as they end, in any order.

        At most ``max_in_flight`` run at once, and no more than the server allows on one stream;
        ``requests`` is read only as fast as that. One that fails is an outcome with an ``error``,
        its neighbours are unharmed. Leaving the loop cancels what still runs.
        """
        return self._analyze_many(InFlight(requests, max_in_flight))

    def _analyze_many(self, flight: InFlight) -> Iterator[Outcome]:
        attempts, starts = self._attempts(), flight.due()
        while True:
            feed = _Feed(flight)
            call = self._main.analysis.AnalyzeMany(feed.messages(), **self._options(attempts))
            try:
                feed.send(starts)
                for message in call:
                    attempts.commit()
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
                feed.end()  # lets gRPC's sending thread end
                call.cancel()
            time.sleep(pause_s)
            starts = flight.again()

    def models(self) -> list[catalog.Model]:
        """The configured models, by name."""
        answer = self._ask(self._main.models.ListModels, models_pb2.ListModelsRequest())
        return [convert.model(m) for m in answer.models]

    def model(self, name: str) -> catalog.Model:
        """One model, with its anatomy when it is resident. Raises NotFound."""
        answer = self._ask(self._main.models.GetModel, models_pb2.GetModelRequest(name=name))
        return convert.model(answer.model)

    def load(self, name: str) -> Iterator[catalog.LoadStep]:
        """Makes a model resident, step by step, starting when the iteration does. Admin scope."""
        request = models_pb2.LoadModelRequest(name=name)
        for message in self._stream(self._ops.models.LoadModel, request, self._explain_admin):
            yield convert.load_step(message)

    def unload(self, name: str) -> catalog.Model:
        """Waits for the model's analyses and frees its memory. Admin scope."""
        request = models_pb2.UnloadModelRequest(name=name)
        return convert.model(self._ask_admin(self._ops.models.UnloadModel, request).model)

    def watch_models(self) -> Iterator[catalog.Model]:
        """The state of every model, then every change, until the iteration is left."""
        request = models_pb2.WatchModelsRequest()
        for message in self._stream(self._main.models.WatchModels, request, self._explain):
            yield convert.model(message.model)

    def analyzers(self) -> list[catalog.Analyzer]:
        """The analyzers that answer, by name, without schema, results and examples."""
        answer = self._ask(self._main.analyzers.ListAnalyzers, analyzers_pb2.ListAnalyzersRequest())
        return [convert.analyzer(a) for a in answer.analyzers]

    def plugins(self) -> list[catalog.Plugin]:
        """Every installed plugin, broken ones included."""
        answer = self._ask(self._main.analyzers.ListAnalyzers, analyzers_pb2.ListAnalyzersRequest())
        return [convert.plugin(p) for p in answer.plugins]

    def analyzer(self, name: str) -> catalog.Analyzer:
        """One analyzer with schema, results, examples and which models can serve it."""
        request = analyzers_pb2.GetAnalyzerRequest(name=name)
        return convert.analyzer(self._ask(self._main.analyzers.GetAnalyzer, request).analyzer)

    def artifacts(self) -> list[catalog.Artifact]:
        """What analyzers have stored, by name, newest version first."""
        answer = self._ask(self._main.artifacts.ListArtifacts, artifacts_pb2.ListArtifactsRequest())
        return [convert.artifact(a) for a in answer.artifacts]

    def artifact(self, name: str) -> catalog.Artifact:
        """One artifact, ``name`` for the newest or ``name@version``."""
        request = artifacts_pb2.GetArtifactRequest(name=name)
        return convert.artifact(self._ask(self._main.artifacts.GetArtifact, request).artifact)

    def delete_artifact(self, name: str) -> None:
        """Deletes ``name@version``. Admin scope."""
        request = artifacts_pb2.DeleteArtifactRequest(name=name)
        self._ask_admin(self._ops.artifacts.DeleteArtifact, request)

    def server_info(self) -> catalog.ServerInfo:
        """Versions, limits and features of the server."""
        answer = self._ask(self._main.server.GetServerInfo, server_pb2.GetServerInfoRequest())
        return convert.server_info(answer)

    def load_status(self) -> catalog.Load:
        """How busy the server is."""
        return convert.load(self._ask(self._main.server.GetLoad, server_pb2.GetLoadRequest()))

    def health(self, service: str = "") -> catalog.HealthStatus:
        """Health of the server, of a service (``lensd.v1.AnalysisService``) or of a model.

        A model is ``lensd.v1.Model/NAME``. Raises NotFound for a service nobody knows.
        """
        answer = self._ask(self._main.health.Check, health_pb2.HealthCheckRequest(service=service))
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        return cast("catalog.HealthStatus", name)

    def analyses(self) -> list[catalog.RunningAnalysis]:
        """The running analyses, oldest first. Admin scope."""
        answer = self._ask_admin(self._ops.server.ListAnalyses, server_pb2.ListAnalysesRequest())
        return [convert.running(a) for a in answer.analyses]

    def release_plugin(self, distribution: str) -> bool:
        """Lets a quarantined plugin's analyzers answer again; False when it was not quarantined. Admin scope."""
        request = analyzers_pb2.ReleasePluginRequest(distribution=distribution)
        return self._ask_admin(self._ops.analyzers.ReleasePlugin, request).released

    def cancel_analysis(self, request_id: str) -> bool:
        """Stops anybody's analysis; False when no such one was running. Admin scope."""
        request = server_pb2.CancelAnalysisRequest(request_id=request_id)
        return self._ask_admin(self._ops.server.CancelAnalysis, request).cancelled

    def wait_until_ready(self, timeout_s: float = 30.0) -> None:
        """Waits for the connection. Raises ServerUnavailable when there is none in time."""
        ready = grpc.channel_ready_future(self._channel)
        try:
            ready.result(timeout=timeout_s)
        except grpc.FutureTimeoutError:
            ready.cancel()
            raise self._not_ready(timeout_s) from None

    def close(self) -> None:
        """Ends the connections; what still runs is cancelled."""
        self._channel.close()
        self._admin_channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, method: Any, request: Any) -> Any:
        return self._unary(method, request, self._explain)

    def _ask_admin(self, method: Any, request: Any) -> Any:
        return self._unary(method, request, self._explain_admin)

    def _unary(self, method: Any, request: Any, explain: Callable[[Any], LensdError]) -> Any:
        attempts = self._attempts()
        while True:
            try:
                return method(request, **self._options(attempts))
            except grpc.RpcError as error:
                pause_s = attempts.pause_s(error)
                if pause_s is None:
                    raise explain(error) from error
            time.sleep(pause_s)

    def _stream(self, method: Any, request: Any, explain: Callable[[Any], LensdError]) -> Iterator[Any]:
        attempts = self._attempts()
        while True:
            call = method(request, **self._options(attempts))
            try:
                for message in call:
                    attempts.commit()
                    yield message
                return
            except grpc.RpcError as error:
                pause_s = attempts.pause_s(error)
                if pause_s is None:
                    raise explain(error) from error
            finally:
                call.cancel()
            time.sleep(pause_s)


class _Feed:
    """What is still to be sent on a stream of many analyses."""

    def __init__(self, flight: InFlight) -> None:
        self._flight = flight
        self._queue: queue.SimpleQueue[analysis_pb2.AnalyzeManyRequest | None] = queue.SimpleQueue()

    def send(self, messages: Iterable[analysis_pb2.AnalyzeManyRequest]) -> None:
        for message in messages:
            self._queue.put(message)
        if self._flight.is_done:
            self.end()

    def end(self) -> None:
        self._queue.put(None)

    def messages(self) -> Iterator[analysis_pb2.AnalyzeManyRequest]:
        return iter(self._queue.get, None)
