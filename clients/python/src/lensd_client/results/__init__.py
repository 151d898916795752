"""What an analysis returns: values that know their names, convert themselves and show themselves."""

from lensd_client.results.graph import Edge, Graph, Node
from lensd_client.results.record import Record
from lensd_client.results.table import Table
from lensd_client.results.tensor import Tensor
from lensd_client.results.text import AnnotatedText, Span

#: Any value of a result.
Value = Table | Tensor | Graph | Record | AnnotatedText

__all__ = ["AnnotatedText", "Edge", "Graph", "Node", "Record", "Span", "Table", "Tensor", "Value"]
