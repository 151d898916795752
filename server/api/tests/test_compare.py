"""The comparison behind "batched equals alone" must be able to fail."""

from lensd_api import InvalidParams, ItemError, Record, Table, Tensor
from lensd_api.testing import differences


def test_equal_runs_do_not_differ() -> None:
    run = [Table("t", {"value": [1.0, None], "kind": ["a", "b"]}), Record("r", {"x": float("nan")})]
    assert differences(run, run) == []


def test_rounding_within_the_tolerance_is_no_difference() -> None:
    assert differences([Table("t", {"v": [10.0, 1e-7]})], [Table("t", {"v": [10.00001, 3e-7]})]) == []


def test_a_number_beyond_the_tolerance_is_named() -> None:
    found = differences([Table("t", {"v": [10.0, 1.0]})], [Table("t", {"v": [10.0, 1.001]})])
    assert len(found) == 1
    assert ".columns.v[1]" in found[0]


def test_a_large_integer_does_not_widen_the_tolerance_of_floats() -> None:
    one, other = Record("r", {"token": 49000, "logit": 1.0}), Record("r", {"token": 49000, "logit": 1.01})
    assert differences([one], [other])


def test_integers_must_be_equal() -> None:
    assert differences([Record("r", {"token": 49000})], [Record("r", {"token": 49001})])


def test_a_missing_result_an_item_and_an_error_are_differences() -> None:
    table = Table("t", {"v": [1.0]})
    assert differences([table], [])
    assert differences([table], [Table("t", {"v": [1.0]}, item="1")])
    assert differences([table], [ItemError("t", InvalidParams("no"))])
    assert differences([table], [table, table])


def test_array_likes_compare_by_value() -> None:
    class Array:
        def __init__(self, values: list[float]) -> None:
            self.values = values

        def tolist(self) -> list[float]:
            return self.values

    assert differences([Tensor("x", Array([1.0]))], [Tensor("x", Array([1.0]))]) == []
    assert differences([Tensor("x", Array([1.0]))], [Tensor("x", Array([2.0]))])
