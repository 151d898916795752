"""Parameters as they arrive from a Struct, whose numbers are all doubles."""

import enum
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from lensd_api import BaseParams, InvalidParams
from lensd_api.params import integral


class Colour(enum.StrEnum):
    RED = "red"


class Inner(BaseParams):
    weight: float


class Params(BaseParams):
    prompt: str = Field(min_length=1)
    seed: int = 0
    positions: tuple[int, ...] = ()
    colour: Colour = Colour.RED
    inner: tuple[Inner, ...] = ()
    scale: float = 1.0


def fields(refused: pytest.ExceptionInfo[InvalidParams]) -> list[str]:
    return [v.field for v in refused.value.violations]


def test_an_integral_double_is_an_integer() -> None:
    params = Params.parse({"prompt": "x", "seed": 5.0, "positions": [-1.0, 2.0], "colour": "red"})
    assert params == Params(prompt="x", seed=5, positions=(-1, 2))


def test_a_float_field_takes_what_became_an_integer() -> None:
    assert Params.parse({"prompt": "x", "scale": 2.0}).scale == 2.0


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "x", "seed": 1.5}, "seed"),
        ({"prompt": "x", "seed": "1"}, "seed"),
        ({"prompt": "x", "seed": True}, "seed"),
        ({"prompt": "x", "positions": [1, "2"]}, "positions[1]"),
        ({"prompt": "x", "inner": [{"weight": 1}, {"weight": "2"}]}, "inner[1].weight"),
        ({"prompt": "x", "scale": math.nan}, "scale"),
        ({"prompt": "x", "scale": math.inf}, "scale"),
        ({"prompt": "x", "colour": "blue"}, "colour"),
        ({"prompt": "x", "promt": "y"}, "promt"),
    ],
)
def test_each_fault_names_its_field(values: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        Params.parse(values)
    assert field in fields(refused)


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(InvalidParams) as refused:
        Params.parse({"prompt": "", "seed": "x", "colour": "blue", "other": 1})
    assert sorted(fields(refused)) == ["colour", "other", "prompt", "seed"]
    assert "1 more" in refused.value.message


@given(st.recursive(st.floats() | st.text() | st.booleans() | st.none(), st.lists))
def test_integral_changes_no_value(value: object) -> None:
    assert integral(value) == value or value != value or "nan" in repr(value)


@given(st.integers(min_value=-(2**53) + 1, max_value=2**53 - 1))
def test_every_exact_integer_survives_the_wire(seed: int) -> None:
    assert Params.parse({"prompt": "x", "seed": float(seed)}).seed == seed
