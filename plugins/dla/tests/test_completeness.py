"""What is refused because it does not add up, and what it says."""

import numpy as np
import pytest

from lensd_dla.completeness import (
    TOLERANCES,
    IncompleteDecomposition,
    NotFinite,
    check_complete,
    check_layers,
    tolerance_for,
)

ROWS = np.array([[3.0, -2.0], [0.1, 0.1]])


def test_the_tolerance_grows_with_the_rows_and_the_type() -> None:
    assert tolerance_for("float32", ROWS).tolist() == pytest.approx([5e-5, 1e-5])
    assert tolerance_for("float64", ROWS)[0] < tolerance_for("float32", ROWS)[0]
    assert tolerance_for("bfloat16", ROWS)[0] > tolerance_for("float16", ROWS)[0]


def test_an_unknown_type_gets_the_widest_tolerance() -> None:
    assert tolerance_for("float8_e4m3fn", ROWS)[1] == max(TOLERANCES.values())


def test_gaps_within_tolerance_pass() -> None:
    tolerance = np.array([1e-5, 1e-5])
    check_complete(np.array([1e-6, 1e-5]), tolerance, (4, 7), "block")
    check_layers(np.full((2, 3), 9e-6), tolerance, (4, 7), (0, 5, 9), "block")


def test_a_gap_names_position_size_tolerance_and_the_way_out() -> None:
    with pytest.raises(IncompleteDecomposition) as refused:
        check_complete(np.array([0.0, 0.25]), np.array([1e-5, 1e-5]), (4, 7), "component")
    assert str(refused.value) == (
        "position 7, against the model's own logit: rows miss by 2.50e-01 (tolerance 1.0e-05); "
        "ask for unit='component', which needs no such split"
    )
    assert refused.value.status == "FAILED_PRECONDITION"
    assert refused.value.metadata["coarser_unit"] == "component"


def test_a_gap_within_a_layer_names_the_models_layer() -> None:
    gaps = np.zeros((2, 3))
    gaps[1, 2] = 0.5
    with pytest.raises(IncompleteDecomposition, match="position 7, layer 9"):
        check_layers(gaps, np.array([1e-5, 1e-5]), (4, 7), (0, 5, 9), "component")


def test_nan_is_never_within_tolerance() -> None:
    with pytest.raises(NotFinite, match="position 4"):
        check_complete(np.array([np.nan]), np.array([1.0]), (4,), "block")


def test_an_infinite_gap_is_not_finite_either() -> None:
    with pytest.raises(NotFinite):
        check_complete(np.array([np.inf]), np.array([np.inf]), (4,), "block")


def test_at_unit_block_there_is_nothing_coarser_to_ask_for() -> None:
    with pytest.raises(IncompleteDecomposition, match="no coarser unit is left"):
        check_complete(np.array([2.0]), np.array([1.0]), (4,), None)
