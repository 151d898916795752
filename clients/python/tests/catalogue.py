"""The services of the scripted server that say what there is: always the same."""

from typing import Any

import grpc
from google.protobuf import struct_pb2

from lensd_proto.v1 import (
    analyzers_pb2,
    analyzers_pb2_grpc,
    artifacts_pb2,
    artifacts_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
)


def tiny_model(state: int = models_pb2.MODEL_STATE_RESIDENT) -> models_pb2.Model:
    anatomy = struct_pb2.Struct()
    anatomy.update({"n_layers": 2})
    return models_pb2.Model(
        name="tiny",
        source="dir:/tiny",
        state=state,
        revision="abc",
        architecture="LlamaForCausalLM",
        device="cpu",
        dtype="float32",
        resident_bytes=1234,
        parameters=300,
        context_length=64,
        anatomy=anatomy,
        replicas=[models_pb2.Replica(state=state, device="cpu", leases=2)],
    )


class Models(models_pb2_grpc.ModelServiceServicer):
    def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        return models_pb2.ListModelsResponse(models=[tiny_model()])

    def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name != "tiny":
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.name}")
        return models_pb2.GetModelResponse(model=tiny_model())

    def LoadModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        yield models_pb2.LoadModelResponse(
            model=tiny_model(models_pb2.MODEL_STATE_LOADING), stage="read", fraction=0.5
        )
        yield models_pb2.LoadModelResponse(model=tiny_model(), stage="ready", fraction=1.0)

    def UnloadModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "UnloadModel is not served here")

    def WatchModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        for state in (models_pb2.MODEL_STATE_LOADING, models_pb2.MODEL_STATE_RESIDENT):
            yield models_pb2.WatchModelsResponse(model=tiny_model(state))


class Analyzers(analyzers_pb2_grpc.AnalyzerServiceServicer):
    def _analyzer(self) -> analyzers_pb2.Analyzer:
        schema, params = struct_pb2.Struct(), struct_pb2.Struct()
        schema.update(
            {
                "required": ["prompt"],
                "properties": {
                    "prompt": {"type": "string", "description": "Text."},
                    "unit": {"enum": ["head", "block"], "default": "head"},
                    "top_k": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
                },
            }
        )
        params.update({"prompt": "It's"})
        return analyzers_pb2.Analyzer(
            name="dla",
            qualified_name="lensd-dla:dla",
            distribution="lensd-dla",
            version="0.1.0",
            summary="Attributes logits.",
            params_schema=schema,
            results=[analyzers_pb2.ResultDeclaration(name="summary", kind="record", description="Sums.")],
            examples=[analyzers_pb2.Example(name="its", shows="an apostrophe", params=params)],
            requirements=analyzers_pb2.Requirements(model=True, features=["head"]),
            compatibility=[analyzers_pb2.Compatibility(model="tiny", satisfied=False, reasons=["no heads"])],
        )

    def ListAnalyzers(self, request: Any, context: Any) -> Any:  # noqa: N802
        broken = analyzers_pb2.Plugin(
            name="bad",
            distribution="lensd-bad",
            status=analyzers_pb2.PLUGIN_STATUS_BROKEN,
            problem="no import",
        )
        return analyzers_pb2.ListAnalyzersResponse(analyzers=[self._analyzer()], plugins=[broken])

    def ReleasePlugin(self, request: Any, context: Any) -> Any:  # noqa: N802
        return analyzers_pb2.ReleasePluginResponse(released=request.distribution == "lensd-bad")

    def GetAnalyzer(self, request: Any, context: Any) -> Any:  # noqa: N802
        return analyzers_pb2.GetAnalyzerResponse(analyzer=self._analyzer())


class Artifacts(artifacts_pb2_grpc.ArtifactServiceServicer):
    def ListArtifacts(self, request: Any, context: Any) -> Any:  # noqa: N802
        artifact = artifacts_pb2.Artifact(name="probe", version=3, analyzer="vsa", bytes=2048)
        artifact.create_time.FromSeconds(1_700_000_000)
        return artifacts_pb2.ListArtifactsResponse(artifacts=[artifact])

    def DeleteArtifact(self, request: Any, context: Any) -> Any:  # noqa: N802
        if not request.name.startswith("probe@"):
            context.abort(grpc.StatusCode.NOT_FOUND, f"no artifact {request.name}")
        return artifacts_pb2.DeleteArtifactResponse()


class Server(server_pb2_grpc.ServerServiceServicer):
    def GetServerInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        response = server_pb2.GetServerInfoResponse(
            version="0.1.0", api_version="0.1.0", libraries={"torch": "2.13"}, devices=["cpu"]
        )
        response.start_time.FromSeconds(1_700_000_000)
        limits = response.limits
        limits.max_request_bytes = 4 << 20
        limits.max_artifact_bytes, limits.max_artifacts_bytes = 1 << 30, 1 << 35
        limits.max_queued_rows = 4096
        limits.max_admitted_tokens, limits.max_admitted_bytes = 1000, 1 << 32
        limits.caller_share, limits.max_streams_per_caller = 0.75, 512
        limits.send_timeout.FromSeconds(30)
        limits.quota.max_analyses, limits.quota.bytes_per_minute = 4, 5_000_000
        limits.quota.rows_per_minute = 300
        return response

    def GetLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        return server_pb2.GetLoadResponse(
            analyses=3, models=[server_pb2.ModelLoad(model="tiny", queued_rows=2, queued_tokens=20, leases=1)]
        )

    def ListAnalyses(self, request: Any, context: Any) -> Any:  # noqa: N802
        running = server_pb2.RunningAnalysis(request_id="r9", analyzer="dla", model="tiny", peer="me")
        running.age.FromMilliseconds(1500)
        return server_pb2.ListAnalysesResponse(analyses=[running])

    def CancelAnalysis(self, request: Any, context: Any) -> Any:  # noqa: N802
        return server_pb2.CancelAnalysisResponse(cancelled=request.request_id == "r9")
