"""Reading with a fitted probe: rules, categories, and what is refused."""

from typing import Any

import pytest
import torch

from lensd_api.testing import Engine, Job
from lensd_vsa_probe import VsaFit, VsaProbe
from lensd_vsa_probe.codebook import Codebook
from lensd_vsa_probe.corpus import Example
from lensd_vsa_probe.query import Query, ask, choose, strongest, subsets
from plugins.vsa_probe.tests.small_fit import small

MODEL = "llama"
PROMPT = "cow : calf = hen :"


@pytest.fixture(scope="module")
def engine(lensd_engine: Engine) -> Engine:
    outcome = lensd_engine.run(VsaFit(), Job(small(artifact="read"), MODEL))
    assert outcome.error is None, outcome.error
    return lensd_engine


def read(engine: Engine, **params: Any) -> Any:
    return engine.run(VsaProbe(), Job({"artifact": "read", "prompts": [PROMPT]} | params, MODEL))


def asked(codebook: Codebook) -> tuple[list[Query], tuple[str, ...]]:
    encoded = codebook.encode(Example("", (("cow", "calf"), ("hen", "chick"))))
    items = ("cow", "calf", "hen")
    return [ask(encoded, chosen, codebook) for chosen in subsets(items)], items


def test_every_rule_reads_the_answer_out_of_a_perfect_encoding() -> None:
    codebook = Codebook.draw([f"w{i}" for i in range(200)] + ["cow", "calf", "hen", "chick"], 2048, 0)
    queries, items = asked(codebook)
    for rule in ("key", "best", "oracle"):
        chosen = choose(queries, rule, items, "hen", "chick", codebook)  # pyright: ignore[reportArgumentType]
        name, cosine = strongest(chosen, codebook)
        assert (name, chosen.items) == ("chick", ("hen",))
        assert cosine == pytest.approx(0.5, abs=0.06)
    assert [query.items for query in queries][:2] == [(), ("cow",)]
    assert len(queries) == 8


def test_the_oracle_finds_what_it_is_told_even_in_noise_and_the_other_rules_do_not() -> None:
    """Why it is not the default: chosen by the answer, any vector looks more like it."""
    codebook = Codebook.draw([f"w{i}" for i in range(50)] + ["cow", "calf", "hen", "chick"], 256, 0)
    gains: list[float] = []
    for seed in range(20):
        noise = torch.where(torch.randn(256, generator=torch.Generator().manual_seed(seed)) > 0, 1.0, -1.0)
        queries = [ask(noise, chosen, codebook) for chosen in subsets(("cow", "calf", "hen"))]
        told = choose(queries, "oracle", (), "hen", "chick", codebook)
        blind = choose(queries, "key", (), "hen", "chick", codebook)
        gains.append(float(told.cosines[codebook.index["chick"]] - blind.cosines[codebook.index["chick"]]))
    assert sum(gains) / len(gains) > 1 / 16


def test_concepts_are_the_top_k_in_descending_order_with_their_categories(engine: Engine) -> None:
    outcome = read(engine, top_k=20, targets=["chick"])
    columns = next(r for r in outcome.results if r.name == "concepts").columns
    assert len(columns["concept"]) == len(set(columns["concept"])) > 0
    assert columns["cosine"] == sorted(columns["cosine"], reverse=True)
    told = dict(zip(columns["concept"], columns["category"], strict=True))
    expected = {
        "chick": "target",
        "hen": "key",
        "cow": "example",
        "calf": "example",
        "foal": "out-of-context",
    }
    assert {name: told[name] for name in expected if name in told}.items() <= expected.items()
    assert set(told.values()) > {"target"}


def test_what_is_extracted_lies_above_the_threshold(engine: Engine) -> None:
    for threshold, all_of_them in ((0.0, True), (1.0, False)):
        columns = next(r for r in read(engine, threshold=threshold, top_k=1).results).columns
        assert columns["extracted"] == [all_of_them]


def test_queries_show_every_subset_and_the_map_the_same_cosines(engine: Engine) -> None:
    results = {r.name: r for r in read(engine).results}
    queries, similarities = results["queries"].columns, results["similarities"]
    assert len(queries["query"]) == 8
    assert list(similarities.labels["query"]) == queries["query"]
    assert similarities.data.max(1).values.tolist() == pytest.approx(queries["cosine"])


def test_items_may_be_given_where_the_template_is_not_followed(engine: Engine) -> None:
    items = [{"example_key": "cow", "example_value": "calf", "key": "hen"}]
    outcome = read(engine, prompts=["A cow has a calf, and a hen has a"], items=items)
    assert outcome.error is None
    reading = next(r for r in outcome.results if r.name == "reading").values
    assert reading["query"] == "unbind hen"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"prompts": ["cow : calf = unicorn :"]}, "'unicorn' is no concept"),
        ({"prompts": ["cow : calf = hens :"]}, "near it are hen"),
        ({"prompts": ["The capital of France is"]}, "does not follow"),
        ({"artifact": "no-such"}, "no artifact"),
        ({"query": "oracle"}, "targets"),
        ({"query": "oracle", "targets": ["unicorn"]}, "no concept"),
        ({"targets": ["chick", "calf"]}, "one each"),
        ({"prompts": [PROMPT], "generate": 64, "items": [{"key": "unicorn"}]}, "no concept"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(
    engine: Engine, params: dict[str, Any], message: str
) -> None:
    error = read(engine, **params).error
    assert error is not None
    assert message in error.message


def test_one_prompt_of_several_fails_alone(engine: Engine) -> None:
    outcome = read(engine, prompts=[PROMPT, "cow : calf = unicorn :", "cat : kitten = pig :"])
    assert outcome.error is None
    by_item = {item: [r.name for r in outcome.results if r.item == item] for item in ("0", "1", "2")}
    assert by_item["0"] == by_item["2"] == ["concepts", "queries", "similarities", "reading"]
    (failed,) = [r for r in outcome.results if r.item == "1"]
    assert "unicorn" in failed.error.message


def test_another_models_probe_is_refused(engine: Engine) -> None:
    error = engine.run(VsaProbe(), Job({"artifact": "read", "prompts": [PROMPT]}, "gpt2")).error
    assert error is not None
    assert error.reason == "ARTIFACT_OF_ANOTHER_MODEL"
