"""The generated stubs of every service, on one channel."""

from typing import Any

from grpc_health.v1 import health_pb2_grpc

from lensd_proto.v1 import (
    analysis_pb2_grpc,
    analyzers_pb2_grpc,
    artifacts_pb2_grpc,
    models_pb2_grpc,
    server_pb2_grpc,
)


class Stubs:
    """Callables per service; the same for sync and aio channels, hence not typed further."""

    def __init__(self, channel: Any) -> None:
        self.analysis: Any = analysis_pb2_grpc.AnalysisServiceStub(channel)
        self.analyzers: Any = analyzers_pb2_grpc.AnalyzerServiceStub(channel)
        self.artifacts: Any = artifacts_pb2_grpc.ArtifactServiceStub(channel)
        self.models: Any = models_pb2_grpc.ModelServiceStub(channel)
        self.server: Any = server_pb2_grpc.ServerServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)
