"""Templates, rows and splits."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lensd_vsa_probe.corpus import Example, fill, from_analogies
from lensd_vsa_probe.facts import RELATIONS, analogies
from lensd_vsa_probe.params import DEFAULT_TEMPLATE
from lensd_vsa_probe.prompts import parse
from lensd_vsa_probe.splits import split

words = st.text(st.characters(categories=["L"]), min_size=1, max_size=8)


@settings(deadline=None)
@given(words, words, words)
def test_a_filled_template_is_read_back(a: str, b: str, c: str) -> None:
    for template in (DEFAULT_TEMPLATE, "{a} is to {b} as {c} is to", "(.*) [{a}] + {b}? {c}$"):
        found = parse(template, fill(template, a, b, c), "prompt")
        assert (found.example_key, found.example_value, found.key) == (a, b, c)


def test_a_word_that_looks_like_a_place_is_only_a_word() -> None:
    assert fill("{a} : {b} = {c} :", "{b}", "{c}", "{a}") == "{b} : {c} = {a} :"


def test_concepts_are_folded_and_keep_their_first_spelling() -> None:
    corpus = from_analogies([("A", "b", f"K{i}", f"v{i}") for i in range(12)], DEFAULT_TEMPLATE)
    assert corpus.spellings()["a"] == "A"
    assert corpus.related()["a"] == {"b"}
    assert corpus.examples[0].items == ("a", "b", "k0")
    assert corpus.examples[0].concepts == ("a", "b", "k0", "v0")


def test_rows_are_split_without_overlap_and_completely() -> None:
    examples = from_analogies(analogies(), DEFAULT_TEMPLATE).examples
    for how in ("rows", "combination", "example_pair"):
        parts = split(examples, how, 0.1, 3)
        together = [*parts.train, *parts.validation, *parts.test]
        assert sorted(together) == list(range(len(examples)))
        assert 0.08 < len(parts.test) / len(examples) < 0.15
        assert parts == split(examples, how, 0.1, 3) != split(examples, how, 0.1, 4)


def test_combinations_of_the_test_never_occur_in_training_but_their_pairs_do() -> None:
    examples = from_analogies(analogies(), DEFAULT_TEMPLATE).examples
    parts = split(examples, "combination", 0.1, 0)
    trained = {frozenset(examples[i].pairs) for i in (*parts.train, *parts.validation)}
    assert not trained & {frozenset(examples[i].pairs) for i in parts.test}
    assert {p for i in parts.test for p in examples[i].pairs} <= {p for both in trained for p in both}


def test_example_pairs_of_the_test_never_come_first_in_training() -> None:
    examples = from_analogies(analogies(), DEFAULT_TEMPLATE).examples
    parts = split(examples, "example_pair", 0.1, 0)
    first = {examples[i].pairs[0] for i in (*parts.train, *parts.validation)}
    assert not first & {examples[i].pairs[0] for i in parts.test}


def test_no_fact_is_told_twice() -> None:
    for relation, pairs in RELATIONS.items():
        assert len({left for left, _ in pairs}) == len(pairs), relation
        assert len(pairs) >= 8
    assert len(analogies("currency")) == 14 * 13


def test_an_example_without_pairs_asks_for_nothing() -> None:
    example = Example("a text", features=("One", "two", "one"))
    assert (example.key, example.target, example.items, example.concepts) == (
        "",
        "",
        ("one", "two"),
        ("one", "two"),
    )
