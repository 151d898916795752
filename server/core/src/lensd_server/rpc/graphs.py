"""Graphs to the wire: nodes before the edges that name them, in as many parts as it takes."""

from collections.abc import Iterator

from lensd_api.results import Graph as GraphResult
from lensd_proto.v1 import results_pb2
from lensd_server.rpc.values import InvalidValue, to_struct

#: Tag and length around one node or edge.
_OVERHEAD = 6


def encode(result: GraphResult, part_bytes: int) -> Iterator[results_pb2.Graph]:
    """Graphs of at most ``part_bytes`` that together hold ``result``, at least one.

    Raises InvalidValue for a single node or edge that is larger.
    """
    part = results_pb2.Graph()
    used = 0
    for element in _elements(result):
        size = element.ByteSize() + _OVERHEAD
        if size > part_bytes:
            raise InvalidValue(f"graph {result.name}: one node or edge alone needs {size} bytes")
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
        yield results_pb2.Node(id=node.id, attributes=to_struct(node.attributes))
    for edge in result.edges:
        yield results_pb2.Edge(source=edge.source, target=edge.target, attributes=to_struct(edge.attributes))
