"""What the view keeps for analyzers."""

import torch

from lensd_server.engine.anatomy.inspect import inspect_model
from lensd_server.tiny_models import TINY


def test_derived_tensors_are_built_once_and_counted():
    view = inspect_model(TINY["llama"]()).view
    built: list[torch.Tensor] = []

    def build() -> torch.Tensor:
        built.append(torch.zeros(10, 3))
        return built[-1]

    assert view.cached_bytes == 0
    assert view.cached("test/zeros", build) is view.cached("test/zeros", build)
    assert len(built) == 1
    assert view.cached_bytes == 120
