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


def test_what_was_used_least_recently_goes_when_a_twentieth_of_the_weights_is_kept():
    model = TINY["llama"]()
    view = inspect_model(model).view
    most = sum(weight.nbytes for weight in model.parameters()) // 20
    built: list[str] = []

    def ask(key: str, size: int = most // 8) -> None:
        def build() -> torch.Tensor:
            built.append(key)
            return torch.zeros(size, dtype=torch.float32)  # four bytes each

        view.cached(key, build)

    for key in ("a", "b", "a", "c", "a", "b", "c"):
        ask(key)
    assert built == ["a", "b", "c", "b", "c"]
    assert most // 2 < view.cached_bytes <= most
    ask("large", size=most)
    ask("large", size=most)
    assert built[5:] == ["large", "large"], "not kept"
    ask("c")
    assert len(built) == 7, "nor does it drive out what is"


def test_a_part_of_a_tensor_counts_with_all_that_it_keeps_alive():
    view = inspect_model(TINY["llama"]()).view
    view.cached("part", lambda: torch.zeros(10)[:1])
    assert view.cached_bytes == 40


def test_numbers_are_where_the_model_is_and_of_a_stated_element_type():
    view = inspect_model(TINY["llama"]()).view
    assert torch.equal(view.upload([3, 1]), torch.tensor([3, 1]))
    assert view.upload([0.5], torch.float64).dtype == torch.float64
    assert view.upload([], torch.long).dtype == torch.long
    there = torch.arange(3)
    assert view.upload(there) is there
