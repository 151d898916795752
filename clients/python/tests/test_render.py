"""Drawing in a terminal: readable with and without colour, and safe."""

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import lensd_client as L
from lensd_client.heatmap import pool
from lensd_client.render import render


def draw(value: Any, width: int = 80, *, colour: bool = False, max_rows: int = 20) -> str:
    console = Console(
        file=io.StringIO(),
        width=width,
        color_system="truecolor" if colour else None,
        force_terminal=colour,
        highlight=False,
        legacy_windows=False,
    )
    console.print(render(value, max_rows=max_rows))
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def _heads(n_layers: int = 30, n_heads: int = 9) -> L.Tensor:
    array = np.zeros((1, n_layers, n_heads), np.float32)
    array[0, 3, 5], array[0, 2, 1], array[0, 1, 0] = 6.0, -3.0, np.nan
    return L.Tensor(array, ("position", "layer", "head"), unit="logit", dtype="float32", name="heads")


def test_without_colour_a_heat_map_shows_signed_digits() -> None:
    lines = draw(_heads()).splitlines()
    head_5 = next(line for line in lines if line.startswith("5 "))
    head_1 = next(line for line in lines if line.startswith("1 "))
    head_0 = next(line for line in lines if line.startswith("0 "))
    assert "+9" in head_5
    assert "-4" in head_1
    assert "?" in head_0
    assert "9 is 6 logit" in lines[-2]
    assert "largest: head 5 layer 3 +6, head 1 layer 2 -3" in lines[-1]


def test_with_colour_the_largest_is_red_and_the_smallest_blue() -> None:
    drawn = draw(_heads(), colour=True)
    assert "48;2;178;24;43" in drawn
    assert "48;2;140;174;210" in drawn
    assert "+6 logit" in drawn


@pytest.mark.parametrize("shape", [(30, 9), (9, 30), (80, 64), (500, 700), (1, 1), (48, 128)])
@pytest.mark.parametrize("colour", [True, False])
def test_maps_of_any_size_fit_into_80_columns_and_one_screen(shape: tuple[int, int], colour: bool) -> None:
    array = np.random.default_rng(0).normal(size=shape)
    drawn = draw(L.Tensor(array, ("layer", "head"), dtype="float64", name="t"), colour=colour)
    lines = drawn.splitlines()
    assert len(lines) < 45
    if not colour:
        assert max(len(line) for line in lines) <= 80


def test_pooling_keeps_the_largest_magnitude_with_its_sign() -> None:
    matrix = np.array([[1.0, -5.0, 2.0], [np.nan, 3.0, np.nan]])
    np.testing.assert_array_equal(pool(matrix, 2, 2), [[-5.0, 2.0]])
    assert np.isnan(pool(np.array([[np.nan, np.nan]]), 1, 2)).all()


def test_long_tables_show_the_rows_that_matter_and_say_so() -> None:
    values = np.arange(100.0)
    values[7] = -1e3
    table = L.Table({"n": np.arange(100), "value": values}, {"value": "logit"}, name="t")
    drawn = draw(table, max_rows=5)
    assert "-1000.0000" in drawn
    assert "the largest 5 of 100 rows" in drawn
    assert "█" in drawn
    without = draw(L.Table({"n": np.arange(100)}, name="t"), max_rows=5)
    assert "the first 5 of 100 rows" in without


def test_missing_values_and_empty_things_are_drawn() -> None:
    table = L.Table({"value": np.ma.MaskedArray(np.array([1.0, 0.0]), [False, True])}, name="t")
    assert "1.0000" in draw(table)
    assert "0.0000" not in draw(table).replace("1.0000", "")
    assert "t" in draw(L.Table({}, name="t"))
    assert "(empty)" in draw(L.Tensor(np.zeros((0, 3)), ("a", "b"), dtype="float64", name="t"))
    assert "3.0" in draw(L.Tensor(np.array(3.0), dtype="float64", name="t"))
    assert "no spans" in draw(L.AnnotatedText("abc", name="t"))
    assert "0 nodes" in draw(L.Graph((), (), name="t"))


@pytest.mark.parametrize(
    "value",
    [
        L.Record({"a\x1b[2J": "b\x1b]0;t\x07", "c": ["\x1b"]}, name="n\x1b"),
        L.Table(
            {"c\x1b": np.array(["\x1b[31m", "[bold]x[/]"], dtype=object)}, {"c\x1b": "\x1b"}, name="\x1b"
        ),
        L.Tensor(
            np.ones((1, 2)), ("\x1ba", "b"), {"b": ("\x1b", "y")}, unit="\x1b", name="\x1b", dtype="float64"
        ),
        L.Graph((), (L.Edge("\x1b", "\x1b", {"\x1b": "\x1b"}),), name="\x1b"),
        L.AnnotatedText("a\x1b[2Jb", (L.Span(0, 3, 1.0, "\x1b"),), name="\x1b"),
        L.InvalidArgument("\x1b[2J", reason="\x1b", violations=[L.FieldViolation("\x1b", "\x1b")]),
    ],
)
def test_no_control_character_of_a_server_reaches_the_terminal(value: Any) -> None:
    assert "\x1b" not in draw(value)


def test_markup_in_text_of_a_server_is_only_text() -> None:
    assert "[bold]x[/]" in draw(L.Record({"a": "[bold]x[/]"}, name="n"))


def _wide() -> L.Table:
    numbers = {f"column_{i}": np.array([1000.1 + i, 2.0]) for i in range(8)}
    text = np.array(["a text of several words", "b"], dtype=object)
    return L.Table(
        {"item": np.array([7, 8]), "said": text, **numbers, "value": np.array([3.0, 4.0])}, name="wide"
    )


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_number_is_cut_off_in_a_narrow_terminal(width: int) -> None:
    drawn = draw(_wide(), width)
    for i in range(8):
        assert f"{1000.1 + i:.4f} " in drawn
    assert max(map(len, drawn.splitlines())) <= width


def test_every_block_of_a_wide_table_names_its_rows() -> None:
    lines = [line.split() for line in draw(_wide(), 60).splitlines()]
    assert sum(line[:1] == ["7"] for line in lines) == sum(line[:1] == ["item"] for line in lines) > 1
    assert "█" not in draw(_wide(), 60)
    assert "█" in draw(_wide(), 200)


def test_columns_that_say_nothing_are_named_instead_of_drawn() -> None:
    gone = np.ma.MaskedArray(np.zeros(2), [True, True])
    empty = np.array(["", ""], dtype=object)
    drawn = draw(L.Table({"item": np.array([1, 2]), "gone": gone, "empty": empty}, name="t"))
    assert "nothing in gone, empty" in drawn
    assert drawn.count("gone") == 1


def test_a_table_of_nothing_keeps_its_headings() -> None:
    assert "item" in draw(L.Table({"item": np.array([], dtype=np.int64)}, name="t"))
    assert "said" in draw(L.Table({"said": np.array([""], dtype=object)}, name="t"))
