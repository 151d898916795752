"""Everything beside analyses: models, analyzers, artifacts, the server, health, reflection."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lensd_api.analyzer import Analyzer, Example, Requirements, ResultSpec
from lensd_api.anatomy import Anatomy, LayerAnatomy, Unit
from lensd_api.params import BaseParams
from lensd_api.results import Result
from lensd_proto.v1 import analyzers_pb2, artifacts_pb2, models_pb2, server_pb2
from lensd_server.engine.events import ModelState, ModelStatus, RegisteredAnalyzer, ReplicaStatus
from lensd_server.plugins import AnalyzerRegistry, PluginRecord, PluginStatus
from lensd_server.rpc.listeners import SERVICES
from lensd_server.settings import CallerQuota, QuotaSettings

Refusal = Callable[[Any], Any]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Splits(Analyzer):
    """Splits heads.

    At some length.
    """

    name = "splits"
    results = (ResultSpec("heads", "table", "By head."),)
    examples = (Example("first", "what it shows", {"n": 3}, after=()),)

    class Params(BaseParams):
        n: int = 2**60

    def requirements(self, params: Any = None) -> Requirements:
        return Requirements(units=frozenset({Unit.HEAD}))

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Result]:
        return
        yield


def anatomy(*layers: LayerAnatomy) -> Anatomy:
    return Anatomy("Tiny", len(layers), 8, 2, 2, 4, 16, 0, 99, 64, layers, None)


def install(registry: AnalyzerRegistry, analyzer: Analyzer, *plugins: PluginRecord) -> None:
    registered = RegisteredAnalyzer(analyzer, analyzer.name, "dist", "1.2")
    registry._answers.update({analyzer.name: registered})
    from lensd_server.plugins import LoadedPlugin

    registry._loaded.extend(LoadedPlugin(record) for record in plugins)


async def test_models_are_listed_by_name_and_described_with_their_anatomy(served: Any) -> None:
    stubs = served.stubs(served.public)
    layer = LayerAnatomy(frozenset({Unit.BLOCK}), {Unit.HEAD: "no split"}, {Unit.BLOCK: 0.0})
    served.models.states["tiny"] = ModelStatus(
        "tiny",
        "dir:/t",
        ModelState.RESIDENT,
        revision="abc",
        device="cpu",
        dtype="float32",
        resident_bytes=10,
        parameters=5,
        leases=1,
        pinned=True,
        anatomy=anatomy(layer),
        replicas=(
            ReplicaStatus(ModelState.RESIDENT, "cuda:0", leases=1),
            ReplicaStatus(ModelState.COLD, problem="no room"),
            ReplicaStatus(ModelState.DRAINING, "cuda:1", detail="makes room for b"),
        ),
    )
    listed = (await stubs.models.ListModels(models_pb2.ListModelsRequest())).models
    assert [m.name for m in listed] == ["other", "tiny"]
    assert not listed[1].HasField("anatomy")
    model = (await stubs.models.GetModel(models_pb2.GetModelRequest(name="tiny"))).model
    assert (model.state, model.architecture, model.context_length) == (
        models_pb2.MODEL_STATE_RESIDENT,
        "Tiny",
        64,
    )
    assert (model.device, model.pinned, model.resident_bytes) == ("cpu", True, 10)
    assert [(r.state, r.device, r.leases, r.problem, r.detail) for r in model.replicas] == [
        (models_pb2.MODEL_STATE_RESIDENT, "cuda:0", 1, "", ""),
        (models_pb2.MODEL_STATE_COLD, "", 0, "no room", ""),
        (models_pb2.MODEL_STATE_DRAINING, "cuda:1", 0, "", "makes room for b"),
    ]
    assert model.anatomy["n_layers"] == 1
    assert model.anatomy["layers"][0]["refused"]["head"] == "no split"


async def test_loading_streams_and_unloading_answers(served: Any) -> None:
    stubs = served.stubs(served.admin)
    steps = [s async for s in stubs.models.LoadModel(models_pb2.LoadModelRequest(name="other"))]
    assert [(s.stage, s.fraction) for s in steps] == [("read", 0.5), ("ready", 1.0)]
    assert steps[-1].model.state == models_pb2.MODEL_STATE_RESIDENT
    answer = await stubs.models.UnloadModel(models_pb2.UnloadModelRequest(name="other"))
    assert answer.model.state == models_pb2.MODEL_STATE_COLD


async def test_watching_sends_the_state_and_then_each_change(served: Any) -> None:
    call = served.stubs(served.public).models.WatchModels(models_pb2.WatchModelsRequest())
    assert [(await call.read()).model.name for _ in range(2)] == ["other", "tiny"]
    served.models.states["other"] = ModelStatus("other", "x", ModelState.FAILED, problem="why")
    served.models.changed.set()
    changed = (await call.read()).model
    assert (changed.name, changed.state, changed.problem) == ("other", models_pb2.MODEL_STATE_FAILED, "why")
    call.cancel()


async def test_analyzers_and_broken_plugins_are_listed(served: Any) -> None:
    broken = PluginRecord("bad", "bad-dist", "0.1", PluginStatus.BROKEN, "x" * 2000)
    install(served.registry, Splits(), broken)
    answer = await served.stubs(served.public).analyzers.ListAnalyzers(analyzers_pb2.ListAnalyzersRequest())
    (analyzer,) = answer.analyzers
    assert (analyzer.name, analyzer.qualified_name, analyzer.version) == ("splits", "dist:splits", "1.2")
    assert (analyzer.summary, analyzer.description) == ("Splits heads.", "At some length.")
    assert not analyzer.HasField("params_schema")
    (plugin,) = answer.plugins
    assert plugin.status == analyzers_pb2.PLUGIN_STATUS_BROKEN
    assert 400 < len(plugin.problem) <= 500


async def test_an_analyzer_is_described_with_schema_results_examples_and_models(served: Any) -> None:
    install(served.registry, Splits())
    good = LayerAnatomy(frozenset({Unit.BLOCK, Unit.HEAD}))
    bad = LayerAnatomy(frozenset({Unit.BLOCK}), {Unit.HEAD: "residual added inside"})
    for name, layers in (("able", (good, good)), ("unable", (good, bad))):
        served.models.states[name] = ModelStatus(
            name, "dir:/x", ModelState.RESIDENT, anatomy=anatomy(*layers)
        )
    stub = served.stubs(served.public).analyzers
    analyzer = (await stub.GetAnalyzer(analyzers_pb2.GetAnalyzerRequest(name="splits"))).analyzer
    assert analyzer.params_schema["properties"]["n"]["type"] == "integer"
    assert [(r.name, r.kind) for r in analyzer.results] == [("heads", "table")]
    assert analyzer.examples[0].params["n"] == 3
    assert list(analyzer.requirements.features) == ["head"]
    found = {c.model: (c.satisfied, list(c.reasons)) for c in analyzer.compatibility}
    assert "other" not in found, "a model that is not resident is not known yet"
    assert found["able"] == (True, [])
    satisfied, (why,) = found["unable"]
    assert not satisfied
    assert "residual added inside" in why
    assert "layer 1" in why


async def test_an_unknown_analyzer_names_those_there_are(served: Any, refusal: Refusal) -> None:
    install(served.registry, Splits())
    stub = served.stubs(served.public).analyzers
    said = await refusal(stub.GetAnalyzer(analyzers_pb2.GetAnalyzerRequest(name="nope")))
    assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_ANALYZER")
    assert "splits" in said.message


async def test_an_operator_releases_a_quarantined_plugin_and_that_is_written_down(
    served: Any, refusal: Refusal
) -> None:
    install(served.registry, Splits(), PluginRecord("splits", "dist", "1.2", PluginStatus.ACTIVE))
    served.registry.quarantine("dist", "it failed")
    stub, request = served.stubs(served.admin).analyzers, analyzers_pb2.ReleasePluginRequest
    ask = analyzers_pb2.GetAnalyzerRequest(name="splits")
    assert (await refusal(stub.GetAnalyzer(ask))).reason == "PLUGIN_QUARANTINED"
    with structlog.testing.capture_logs() as lines:
        assert (await stub.ReleasePlugin(request(distribution="dist"))).released
    assert (await stub.GetAnalyzer(ask)).analyzer.name == "splits"
    (line,) = [line for line in lines if line["event"] == "admin call"]
    assert (line["method"], line["subject"]) == ("/lensd.v1.AnalyzerService/ReleasePlugin", "dist")
    assert not (await stub.ReleasePlugin(request(distribution="dist"))).released
    assert (await refusal(stub.ReleasePlugin(request(distribution="other")))).reason == "UNKNOWN_PLUGIN"
    said = await refusal(stub.ReleasePlugin(request(distribution="../x")))
    assert (said.code, list(said.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, ["distribution"])
    served.registry.quarantine("dist", "it hangs", for_good=True)
    said = await refusal(stub.ReleasePlugin(request(distribution="dist")))
    assert (said.code, said.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PLUGIN_HANGS")


async def test_artifacts_are_listed_described_and_deleted(served: Any, refusal: Refusal) -> None:
    stub = served.stubs(served.admin).artifacts
    (listed,) = (await stub.ListArtifacts(artifacts_pb2.ListArtifactsRequest())).artifacts
    assert (listed.name, listed.version, listed.bytes) == ("probe", 2, 10)
    assert not listed.HasField("metadata")
    assert listed.create_time.ToMilliseconds() == 1500
    got = (await stub.GetArtifact(artifacts_pb2.GetArtifactRequest(name="probe"))).artifact
    assert got.metadata["accuracy"] == 0.5
    said = await refusal(stub.DeleteArtifact(artifacts_pb2.DeleteArtifactRequest(name="probe")))
    assert said.code is grpc.StatusCode.INVALID_ARGUMENT, "a version has to be named"
    await stub.DeleteArtifact(artifacts_pb2.DeleteArtifactRequest(name="probe@2"))
    said = await refusal(stub.GetArtifact(artifacts_pb2.GetArtifactRequest(name="probe@2")))
    assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_ARTIFACT")


async def test_the_server_says_what_it_is(served: Any) -> None:
    stub = served.stubs(served.public).server
    info = await stub.GetServerInfo(server_pb2.GetServerInfoRequest())
    assert info.version
    assert info.api_version
    assert {"python", "torch", "transformers"} <= set(info.libraries)
    assert info.limits.max_request_bytes == 4 * 1024 * 1024
    assert info.limits.max_response_bytes == 1024 * 1024
    assert not info.limits.HasField("max_timeout")
    assert list(info.devices) == ["cpu"]


#: Settings of ``[limits]`` that only the operator has to know.
OPERATORS_OWN = {
    "memory_bytes",
    "min_residency_s",
    "max_evictions_per_minute",
    "max_stall_s",
    "max_checkpoints",
}


async def test_every_limit_that_a_caller_meets_is_told_before_it_asks(served: Any, limits: Any) -> None:
    told = (await served.stubs(served.public).server.GetServerInfo(server_pb2.GetServerInfoRequest())).limits
    names = {field.name for field in told.DESCRIPTOR.fields} - {"quota"}
    settings = {name.removesuffix("_s") for name in type(limits).model_fields if name not in OPERATORS_OWN}
    assert names == settings, "told or named above as the operator's own"
    for name in names - {"max_timeout", "send_timeout"}:
        assert getattr(told, name) == getattr(limits, name), name
    assert told.send_timeout.ToTimedelta().total_seconds() == limits.send_timeout_s


async def test_a_caller_is_told_its_own_quota(served: Any, access: Any) -> None:
    async def quota() -> server_pb2.Quota:
        info = await served.stubs(served.public).server.GetServerInfo(server_pb2.GetServerInfoRequest())
        return info.limits.quota

    assert (await quota()).ListFields() == []
    access.quotas.take_over(
        QuotaSettings(
            max_analyses=9,
            rows_per_minute=7,
            callers={"ipv4:127.0.0.1": CallerQuota(tokens_per_minute=60)},
        )
    )
    own = await quota()
    assert (own.max_analyses, own.rows_per_minute, own.tokens_per_minute) == (9, 7, 60)
    assert not own.HasField("bytes_per_minute")


async def test_the_load_names_resident_models_and_whether_it_drains(served: Any) -> None:
    stub = served.stubs(served.public).server
    load = await stub.GetLoad(server_pb2.GetLoadRequest())
    assert [(m.model, m.queued_rows, m.leases) for m in load.models] == [("tiny", 4, 1)]
    assert not load.draining
    served.gate.close()
    assert (await stub.GetLoad(server_pb2.GetLoadRequest())).draining


async def test_an_operator_lists_and_cancels_analyses(served: Any, refusal: Refusal) -> None:
    from lensd_proto.v1 import analysis_pb2

    served.executor.waits("a")
    call = served.analysis.Analyze(analysis_pb2.AnalyzeRequest(analyzer="a", request_id="r"))
    await call.read()
    stub = served.stubs(served.admin).server
    (running,) = (await stub.ListAnalyses(server_pb2.ListAnalysesRequest())).analyses
    assert (running.request_id, running.pending_rows, running.age.ToMilliseconds()) == ("r", 3, 1500)
    cancel = server_pb2.CancelAnalysisRequest
    assert (await stub.CancelAnalysis(cancel(request_id="r"))).cancelled
    assert not (await stub.CancelAnalysis(cancel(request_id="s"))).cancelled
    said = await refusal(stub.CancelAnalysis(cancel(request_id="")))
    assert said.code is grpc.StatusCode.INVALID_ARGUMENT
    call.cancel()


async def test_health_tells_the_truth_overall_per_service_and_per_model(served: Any) -> None:
    health = served.health
    names = ["", *(service.full_name for service in SERVICES)]
    for channel in (served.public, served.admin):
        stub = health_pb2_grpc.HealthStub(channel)

        async def check(name: str, stub: Any = stub) -> int:
            return (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status

        await health.starting()
        assert {await check(name) for name in names} == {NOT_SERVING}
        await health.ready()
        assert {await check(name) for name in names} == {SERVING}
        for status in served.models.statuses():
            await health.model(status)
        assert await check("lensd.v1.Model/tiny") == SERVING
        assert await check("lensd.v1.Model/other") == NOT_SERVING
    await health.draining()
    await health.ready()
    assert {await check(name) for name in [*names, "lensd.v1.Model/tiny"]} == {NOT_SERVING}


async def test_reflection_lists_every_service_on_both_listeners(served: Any) -> None:
    for channel, channelz in ((served.public, False), (served.admin, True)):
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await call.read()
        names = {service.name for service in answer.list_services_response.service}
        assert {s.full_name for s in SERVICES} | {"grpc.health.v1.Health"} <= names
        assert ("grpc.channelz.v1.Channelz" in names) is channelz
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_channelz_answers_on_the_admin_listener_only(served: Any) -> None:
    request = channelz_pb2.GetServersRequest()
    answer = await channelz_pb2_grpc.ChannelzStub(served.admin).GetServers(request)
    assert answer.server
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await channelz_pb2_grpc.ChannelzStub(served.public).GetServers(request)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_second_server_cannot_take_a_port_that_is_taken() -> None:
    from lensd_server.rpc.listeners import _OPTIONS, AddressInUse, listen

    first = grpc.aio.server(options=_OPTIONS)
    address = listen(first, "127.0.0.1:0", "server.listen")
    await first.start()
    second = grpc.aio.server(options=_OPTIONS)
    with pytest.raises(AddressInUse, match=r"server\.listen.*in use"):
        listen(second, address, "server.listen")
    await first.stop(None)
    await second.stop(None)


async def test_calls_and_messages_are_counted_by_method_and_code(served: Any) -> None:
    from lensd_proto.v1 import analysis_pb2

    served.executor.yields("a")
    stubs = served.stubs(served.public)
    async for _ in stubs.analysis.Analyze(analysis_pb2.AnalyzeRequest(analyzer="a")):
        pass
    many = stubs.analysis.AnalyzeMany()
    await many.write(
        analysis_pb2.AnalyzeManyRequest(start=analysis_pb2.AnalyzeRequest(analyzer="a", request_id="1"))
    )
    await many.done_writing()
    assert len([m async for m in many]) == 2
    for call in (
        stubs.models.GetModel(models_pb2.GetModelRequest(name="nope")),
        served.public.unary_unary("/no.Such/Method")(b""),
        served.public.unary_unary("/lensd.v1.ModelService/NoSuch")(b""),
    ):
        with pytest.raises(grpc.aio.AioRpcError):
            await call
    waiting = served.executor.waits("w")
    call = stubs.analysis.Analyze(analysis_pb2.AnalyzeRequest(analyzer="w", request_id="w"))
    await call.read()
    in_flight = {"service": "lensd.v1.AnalysisService", "method": "Analyze"}
    value = served.metrics.registry.get_sample_value
    assert value("lensd_grpc_requests_in_flight", in_flight) == 1
    call.cancel()
    await asyncio.wait_for(served.executor.ended["w"].wait(), 10)
    waiting.set()
    await asyncio.wait_for(served.gate.empty(), 10)
    # The handler's last steps follow the gate's: let them happen.
    while value("lensd_grpc_requests_in_flight", in_flight):  # noqa: ASYNC110
        await asyncio.sleep(0)

    def count(service: str, method: str, code: str) -> float | None:
        labels = {"service": service, "method": method, "code": code}
        return value("lensd_grpc_requests_total", labels)

    assert count("lensd.v1.AnalysisService", "Analyze", "OK") == 1
    assert count("lensd.v1.AnalysisService", "Analyze", "CANCELLED") == 1
    assert count("lensd.v1.ModelService", "GetModel", "NOT_FOUND") == 1
    assert count("unknown", "unknown", "UNIMPLEMENTED") == 2
    many_labels = {"service": "lensd.v1.AnalysisService", "method": "AnalyzeMany"}
    assert value("lensd_grpc_stream_messages_total", {**many_labels, "direction": "sent"}) == 2
    assert value("lensd_grpc_stream_messages_total", {**many_labels, "direction": "received"}) == 1
    assert value("lensd_grpc_request_duration_seconds_count", many_labels) == 1
