"""Graphs to the wire: nodes before the edges that name them, in as many parts as it takes."""

from collections.abc import Iterator

from lensd_api.results import Graph as GraphResult
from lensd_proto.v1 import results_pb2
from lensd_server.engine.plain import field_bytes
from lensd_server.rpc.values import pack_struct


def encode(result: GraphResult, part_bytes: int) -> Iterator[results_pb2.Graph]:
    """Graphs of at most ``part_bytes`` that together hold ``result``, at least one.

    ``result`` has been checked (:mod:`lensd_server.engine.soundness`): every node and edge fits.
    """
    part = results_pb2.Graph()
    used = 0
    for element in _elements(result):
        size = field_bytes(element.ByteSize())
        if used + size > part_bytes:
            yield part
            part, used = results_pb2.Graph(), 0
        used += size
        if isinstance(element, results_pb2.Node):
            part.nodes.append(element)
        else:
            part.edges.append(element)
    yield part


def _elements(result: GraphResult) -> Iterator[results_pb2.Node | results_pb2.Edge]:
    for node in result.nodes:
        yield results_pb2.Node(id=node.id, attributes=pack_struct(node.attributes))
    for edge in result.edges:
        yield results_pb2.Edge(
            source=edge.source, target=edge.target, attributes=pack_struct(edge.attributes)
        )
