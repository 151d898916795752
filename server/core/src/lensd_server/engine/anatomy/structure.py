"""An inspected model from the inside: which modules to watch, and how it takes its inputs."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from lensd_api import Anatomy
from lensd_server.engine.anatomy.embeddings import Embeddings
from lensd_server.engine.anatomy.layers import Layer
from lensd_server.engine.anatomy.readout import ReadOut
from lensd_server.engine.anatomy.skeleton import Skeleton
from lensd_server.engine.anatomy.view import WeightView


@dataclass(frozen=True, slots=True)
class Structure:
    """What :func:`lensd_server.engine.anatomy.capture.run_batch` needs to know of a model."""

    skeleton: Skeleton
    layers: tuple[Layer, ...]
    embeddings: Embeddings
    read_out: ReadOut
    #: Layer of each module that the attention recorder is shown.
    attention_layers: Mapping[nn.Module, int]
    takes_position_ids: bool
    #: Whether padding has to be masked even though it comes last.
    needs_mask: bool


@dataclass(frozen=True, slots=True)
class InspectedModel:
    """A model whose anatomy was derived and verified."""

    module: PreTrainedModel
    anatomy: Anatomy
    view: WeightView
    structure: Structure
