"""Figures: what is on the axes, without looking at pixels."""

from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

import lensd_client as L
from lensd_client.plot import bars, heatmap


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    """Draws nowhere, and leaves no figure open."""
    mpl.use("Agg")
    yield
    plt.close("all")


@pytest.fixture
def contributions() -> L.Table:
    cells = [(layer, head) for layer in range(3) for head in range(4)]
    layers = [layer for layer, _ in cells] + [0, 1]
    return L.Table(
        {
            "position": np.full(14, 5),
            "layer": np.array(layers),
            "kind": np.array(["head"] * 12 + ["mlp"] * 2, dtype=object),
            "index": np.array([head for _, head in cells] + [0, 0]),
            "value": np.arange(14.0) - 6.5,
        },
        {"value": "logit"},
        name="contributions",
    )


def _image(ax: Any) -> Any:
    return np.ma.filled(ax.images[0].get_array().astype(float), np.nan)


def test_a_tensor_is_drawn_at_the_last_position_unless_told() -> None:
    array = np.arange(12.0).reshape(2, 2, 3)
    tensor = L.Tensor(array, ("position", "layer", "head"), unit="logit", name="heads", dtype="float64")
    ax = tensor.plot()
    np.testing.assert_array_equal(_image(ax), array[1])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("head", "layer")
    assert "position 1" in ax.get_title()
    np.testing.assert_array_equal(_image(tensor.plot(at={"position": 0})), array[0])
    with pytest.raises(ValueError, match="these axes can be fixed"):
        tensor.plot(at={"nope": 0})


def test_white_is_zero() -> None:
    ax = heatmap(L.Tensor(np.array([[1.0, -4.0]]), ("a", "b"), name="t", dtype="float64"))
    assert ax.images[0].get_clim() == (-4.0, 4.0)


def test_heads_of_a_table_are_drawn_over_layers(contributions: L.Table) -> None:
    ax = heatmap(contributions)
    np.testing.assert_array_equal(_image(ax), contributions["value"][:12].reshape(3, 4))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("head", "layer")
    ax = heatmap(contributions, at={"kind": "mlp"})
    assert _image(ax).shape == (2, 1)
    with pytest.raises(ValueError, match="no rows"):
        heatmap(contributions, at={"kind": "nope"})


def test_bars_show_the_largest_first(contributions: L.Table) -> None:
    ax = bars(contributions, top=3)
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == [-6.5, 6.5, -5.5]
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["layer 0 head 0", "layer 1 mlp 0", "layer 0 head 1"]
    assert ax.get_xlabel() == "logit"
    assert "3 largest of 14" in ax.get_title()


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="no two axes"):
        heatmap(L.Tensor(np.ones(3), name="t", dtype="float64"))
    with pytest.raises(ValueError, match="does not hold numbers"):
        bars(L.Table({"value": np.array(["a"], dtype=object)}))
    with pytest.raises(ValueError, match="top"):
        bars(L.Table({"value": np.ones(1)}), top=0)
    with pytest.raises(ValueError, match="no numbers to draw"):
        bars(L.Table({"value": np.array([np.nan])}))


def test_axes_that_are_given_are_used(contributions: L.Table) -> None:
    _, ax = plt.subplots()
    assert bars(contributions, ax=ax) is ax
    assert contributions.plot(ax=ax) is ax


def test_dollar_signs_are_not_formulas() -> None:
    table = L.Table({"token": np.array(["$a$", "b"], dtype=object), "value": np.ones(2)}, name="x$y$")
    ax = bars(table)
    ax.figure.canvas.draw()
    assert [label.get_text() for label in ax.get_yticklabels()] == [r"\$a\$", "b"]
