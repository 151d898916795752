"""JSON-like values keep their meaning on the way to a Struct."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from lensd_server.engine.plain import Unsound, plain
from lensd_server.rpc.values import from_struct, to_struct

JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=4), JSON, max_size=4))
def test_what_goes_in_comes_out(values: dict[str, Any]) -> None:
    sent = Struct.FromString(to_struct(values).SerializeToString())
    assert from_struct(sent) == values


@given(
    st.dictionaries(
        st.text(max_size=200), JSON | st.floats() | st.text(min_size=120, max_size=300), max_size=9
    )
)
def test_the_size_is_known_before_it_is_written(values: dict[str, Any]) -> None:
    assert plain(values)[1] == to_struct(values).ByteSize()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), torch.tensor(math.inf)])
def test_what_json_cannot_say_becomes_null(value: Any) -> None:
    assert from_struct(to_struct({"a": value, "b": [value]})) == {"a": None, "b": [None]}


def test_arrays_tensors_and_tuples_become_lists() -> None:
    values = {"a": np.arange(3), "b": torch.ones(2, 2), "c": (1, "x"), "d": np.int64(7)}
    assert from_struct(to_struct(values)) == {"a": [0, 1, 2], "b": [[1, 1], [1, 1]], "c": [1, "x"], "d": 7}


@pytest.mark.parametrize("empty", [{}, []])
def test_empty_containers_are_not_null(empty: Any) -> None:
    assert from_struct(to_struct({"a": empty})) == {"a": empty}


def test_an_integer_that_a_double_would_change_is_refused() -> None:
    assert from_struct(to_struct({"a": 2**53})) == {"a": 2**53}
    with pytest.raises(Unsound, match=r"a\.b\[0\].*2\^53"):
        to_struct({"a": {"b": [2**53 + 1]}})


def test_an_object_is_refused_by_its_path() -> None:
    with pytest.raises(Unsound, match=r"a\[1\] is a object"):
        to_struct({"a": [1, object()]})


def test_endless_nesting_is_refused() -> None:
    endless: dict[str, Any] = {}
    endless["a"] = endless
    with pytest.raises(Unsound, match="deep"):
        to_struct(endless)


def test_nan_in_a_request_stays_nan() -> None:
    struct = Struct()
    struct.fields["x"].number_value = math.nan
    assert math.isnan(from_struct(struct)["x"])
