"""Result objects: conversions, and what notebooks show."""

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import lensd_client as L
from lensd_client import _structs

_NASTY = '<script>alert("x")</script>&\''


def _table(**given: Any) -> L.Table:
    return L.Table(
        {
            "layer": np.ma.MaskedArray(np.array([0, 1, 0]), [False, False, True]),
            "kind": np.array(["attn", "mlp", None], dtype=object),
            "value": np.array([1.5, -2.0, np.nan]),
            "ok": np.ma.MaskedArray(np.array([True, False, False]), [False, False, True]),
        },
        {"value": "logit"},
        name="contributions",
        **given,
    )


def test_a_table_gives_columns_rows_and_dictionaries() -> None:
    table = _table()
    assert len(table) == 3
    assert list(table.rows())[1] == {"layer": 1, "kind": "mlp", "value": -2.0, "ok": False}
    assert table.to_dict()["layer"] == [0, 1, None]
    with pytest.raises(KeyError, match="there are layer, kind"):
        table["nope"]
    assert repr(table) == "<Table 'contributions': 3 rows of layer, kind, value [logit], ok>"


def test_pandas_keeps_types_units_and_missing_values() -> None:
    frame = _table().to_pandas()
    assert {name: str(kind) for name, kind in frame.dtypes.items() if name != "kind"} == {
        "layer": "Int64",
        "value": "float64",
        "ok": "boolean",
    }
    assert frame["layer"].isna().tolist() == [False, False, True]
    assert frame["kind"].isna().tolist() == [False, False, True]
    assert frame.attrs == {"units": {"value": "logit"}}


def test_pandas_shares_the_memory_of_plain_columns() -> None:
    table = _table()
    assert np.shares_memory(table.to_pandas()["value"].to_numpy(), table["value"])


def test_an_empty_table_is_an_empty_frame() -> None:
    frame = L.Table({"value": np.array([])}).to_pandas()
    assert isinstance(frame, pd.DataFrame)
    assert len(frame) == 0


def test_bfloat16_is_widened_exactly() -> None:
    values = np.array([1.0, -2.5, 3.0e38, 0.0, np.inf], dtype=np.float32)
    upper_halves = (values.view(np.uint32) >> 16).astype("<u2")
    tensor = L.Tensor.from_bytes(upper_halves.tobytes(), "bfloat16", (5,))
    assert tensor.to_numpy().dtype == np.float32
    np.testing.assert_array_equal(tensor.to_numpy()[[0, 1, 3, 4]], values[[0, 1, 3, 4]])
    assert tensor.dtype == "bfloat16"


@given(
    hnp.arrays(
        st.sampled_from(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?"]), hnp.array_shapes(min_side=0)
    )
)
def test_every_element_type_comes_back_as_it_was(array: np.ndarray[Any, Any]) -> None:
    tensor = L.Tensor.from_bytes(array.tobytes(), array.dtype.name, array.shape)
    np.testing.assert_array_equal(tensor.to_numpy(), array)
    assert tensor.to_numpy().dtype == array.dtype


def test_xarray_has_named_axes_labels_and_the_unit() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = L.Tensor(array, ("token", "head"), {"token": ("a", "b")}, unit="logit", name="heads")
    converted = tensor.to_xarray()
    assert converted.dims == ("token", "head")
    assert converted.sel(token="b").values.tolist() == [3, 4, 5]
    assert converted.attrs == {"units": "logit"}
    assert np.shares_memory(converted.values, array)
    assert L.Tensor(array).to_xarray().dims == ("dim_0", "dim_1")


def test_numpy_takes_tensors_as_they_are() -> None:
    tensor = L.Tensor(np.ones((2, 2)), ("a", "b"), dtype="float64", name="t", unit="logit")
    assert np.sum(tensor) == 4
    assert np.asarray(tensor) is not None
    assert repr(tensor) == "<Tensor 't': float64 (a=2, b=2) [logit]>"


@pytest.mark.parametrize(
    "value",
    [
        L.Table({_NASTY: np.array([_NASTY], dtype=object)}, {_NASTY: _NASTY}, name=_NASTY),
        L.Tensor(np.ones((1, 1)), (_NASTY, "b"), {"b": (_NASTY,)}, unit=_NASTY, name=_NASTY, dtype="float64"),
        L.Tensor(np.ones((1,)), (_NASTY,), unit=_NASTY, name=_NASTY, dtype="float64"),
        L.Tensor(np.ones((0, 2)), (_NASTY, "b"), name=_NASTY, dtype="float64"),
        L.Tensor(np.ones((2, 0, 2)), (_NASTY, "a", "b"), name=_NASTY, dtype="float64"),
        L.Graph((L.Node(_NASTY),), (L.Edge(_NASTY, _NASTY, {_NASTY: _NASTY}),), name=_NASTY),
        L.Record({_NASTY: {_NASTY: [_NASTY]}}, name=_NASTY),
        L.AnnotatedText(
            _NASTY, (L.Span(1, 9, 0.5, _NASTY), L.Span(3, 5, float("nan"))), name=_NASTY, title=_NASTY
        ),
    ],
)
def test_no_text_of_a_server_is_markup_in_a_notebook(value: L.Value) -> None:
    html = value._repr_html_()
    tags = set(re.findall(r"</?(\w+)", html))
    assert tags <= {
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "p",
        "small",
        "pre",
        "div",
        "b",
        "span",
    }
    assert '"x"' not in html


def test_a_long_table_says_how_much_is_left_out() -> None:
    html = L.Table({"n": np.arange(80)}, name="t")._repr_html_()
    assert html.count("<tr>") == 51
    assert "30 more rows" in html


def test_text_is_cut_where_spans_begin_and_end() -> None:
    text = L.AnnotatedText("abcdef", (L.Span(1, 4, 1.0), L.Span(2, 3, -0.5), L.Span(5, 99, 2.0)))
    assert text.runs() == [("a", 0.0), ("b", 1.0), ("c", 0.5), ("d", 1.0), ("e", 0.0), ("f", 2.0)]


def test_a_record_is_a_mapping() -> None:
    record = L.Record({"a": 1, "b": {"c": [None]}}, name="r")
    assert dict(record) == {"a": 1, "b": {"c": [None]}} == record
    assert "a" in record
    with pytest.raises(KeyError, match="there are a, b"):
        record["c"]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), _JSON))
def test_parameters_come_back_from_a_struct_as_they_were(values: dict[str, Any]) -> None:
    assert _structs.from_struct(_structs.to_struct(values)) == values
