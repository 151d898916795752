"""Rows of one batch never see each other's numbers, whatever their lengths, positions and read-outs."""

from collections.abc import Callable

import pytest
import torch

from lensd_api import Capture, Reduce, Row
from lensd_dla.params import DlaParams
from lensd_dla.plan import plan_parts
from lensd_dla.reading import Reading
from lensd_dla.readout import ReadOut
from lensd_dla.run import attribute
from tests.numerics.direct import DirectModel

ROWS = (
    ("The capital of France is", (-1,), ReadOut()),
    (
        "When Mary and John went to the store, John gave a drink to",
        (-1, 4, 0),
        ReadOut(target=70, contrast=9),
    ),
    ("One", (0,), ReadOut(target=12)),
    ("A head looks back at the words it needs", (2, -1), ReadOut(target=(3, 5))),
)


@pytest.mark.parametrize("unit", ["block", "component", "head", "neuron", "expert", "source"])
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "olmo2", "mixtral", "falcon"])
def test_a_row_in_a_batch_equals_itself_alone(
    name: str, unit: str, model_of: Callable[[str], DirectModel]
) -> None:
    model = model_of(name)
    params = DlaParams.parse(
        {"prompt": "x", "unit": unit, "top_k": 5, "direct_effect": True, "lens": True, "lens_top_k": 2}
    )
    (part,) = plan_parts(params, model.anatomy, longest=64)
    fn = attribute(part, params, model.anatomy.vocab_size)
    rows = [Row(model.encode(text)) for text, _, _ in ROWS]
    captures = [
        Capture(part.sites, positions, part.layers, Reduce(fn, read_out)) for _, positions, read_out in ROWS
    ]
    together: list[Reading] = model.run_together(rows, captures)
    for row, capture, batched in zip(rows, captures, together, strict=True):
        (alone,) = model.run_together([row], [capture])
        assert batched.values.shape == alone.values.shape
        limit = 1e-5 * float(alone.values.abs().max())
        assert torch.allclose(batched.values, alone.values, rtol=0, atol=limit)
        assert (batched.sources is None) == (alone.sources is None)
        if batched.sources is not None:
            assert torch.allclose(batched.sources, alone.sources, rtol=0, atol=limit)


def test_a_given_direction_stays_with_its_row(model_of: Callable[[str], DirectModel]) -> None:
    model = model_of("llama")
    params = DlaParams.parse({"prompt": "x", "unit": "component", "direction": "d"})
    (part,) = plan_parts(params, model.anatomy, longest=64)
    fn = attribute(part, params, model.anatomy.vocab_size)
    unembed = model.inspected.view.unembed
    rows = [Row(model.encode(text)) for text in ("One, two", "The capital of France is")]
    reduces = [Reduce(fn, ReadOut(direction=unembed[token])) for token in (40, 41)]
    captures = [Capture(part.sites, (-1,), part.layers, reduce) for reduce in reduces]
    for reading, row, token in zip(model.run_together(rows, captures), rows, (40, 41), strict=True):
        by_token = Reduce(fn, ReadOut(target=token))
        sites = plan_parts(DlaParams.parse({"prompt": "x"}), model.anatomy, longest=64)[0].sites
        (expected,) = model.run_together([row], [Capture(sites, (-1,), part.layers, by_token)])
        assert torch.allclose(reading.get("attn"), expected.get("attn"), atol=1e-6)
        assert float(reading.get("logit")) == pytest.approx(float(expected.get("logit")), abs=1e-5)
