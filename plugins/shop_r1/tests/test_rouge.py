"""ROUGE-L against the usual package, given a tokenizer that keeps every word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from lensd_shop_r1.rouge import rouge_l


class WhiteSpace:
    """The tokenizer of the reward, as the package wants one."""

    def tokenize(self, text: str) -> list[str]:
        return text.lower().split()


ORACLE = RougeScorer(["rougeL"], tokenizer=WhiteSpace())
words = st.lists(st.sampled_from(["a", "b", "c", "D", "d", "é", "日本", "100g", "a.", "."]), max_size=12).map(
    " ".join
)


@given(words | st.text(max_size=40), words | st.text(max_size=40))
def test_it_equals_the_package(prediction: str, reference: str) -> None:
    expected = ORACLE.score(reference, prediction)["rougeL"].fmeasure
    assert rouge_l(prediction, reference) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("red kettle", "Red  Kettle", 1.0),
        ("kettle red", "red kettle", 0.5),
        ("noise cancelling headphones", "noise cancelling headphones over ear", 0.75),
        ("a b c", "a b x", 2 / 3),
        ("", "", 0.0),
        (" ", "a", 0.0),
        ("深蒸し茶 静岡", "深蒸し茶 宇治", 0.5),
        ("café", "cafe", 0.0),
        ("100g", "100g.", 0.0),
    ],
)
def test_cases_worked_by_hand(prediction: str, reference: str, expected: float) -> None:
    assert rouge_l(prediction, reference) == expected


@given(words, words)
def test_it_is_symmetric_and_within_bounds(one: str, other: str) -> None:
    assert rouge_l(one, other) == rouge_l(other, one)
    assert 0.0 <= rouge_l(one, other) <= 1.0


def test_a_megabyte_against_the_longest_reference_is_quick() -> None:
    assert rouge_l("a b " * 2**18, "b a " * 4096) > 0
