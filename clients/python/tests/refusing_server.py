"""Run as a process: a server that refuses every analysis for now, so that a test can kill it."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from lensd_proto.v1 import analysis_pb2_grpc


class _Analysis(analysis_pb2_grpc.AnalysisServiceServicer):
    def Analyze(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        context.set_trailing_metadata((("grpc-retry-pushback-ms", sys.argv[1]),))
        sys.stdout.write("refused\n")  # in one piece: several threads do
        sys.stdout.flush()
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")


if __name__ == "__main__":
    server = grpc.server(ThreadPoolExecutor(4))
    analysis_pb2_grpc.add_AnalysisServiceServicer_to_server(_Analysis(), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()
