"""The algebra's laws, for all inputs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lensd_vsa_probe.algebra import (
    bind,
    bipolar,
    bundle,
    default_threshold,
    expected_error,
    random_hypervectors,
    similarities,
)
from lensd_vsa_probe.codebook import Codebook
from lensd_vsa_probe.corpus import Example

seeds = st.integers(0, 2**31 - 1)
dims = st.sampled_from([64, 128, 1000])
law = settings(max_examples=30, deadline=None)


@law
@given(seeds, dims)
def test_binding_is_commutative_and_its_own_inverse(seed: int, dim: int) -> None:
    a, b = random_hypervectors(2, dim, seed)
    assert torch.equal(bind(a, b), bind(b, a))
    assert torch.equal(bind(bind(a, b), b), a)
    assert torch.equal(bind(a, a), torch.ones(dim))


@law
@given(seeds, st.integers(2, 7))
def test_a_bundle_is_bipolar_and_its_ties_are_minus_one(seed: int, count: int) -> None:
    vectors = random_hypervectors(count, 256, seed)
    expected = torch.where(vectors.sum(0) > 0, 1.0, -1.0)
    assert torch.equal(bundle(vectors), expected)


@law
@given(seeds)
def test_equal_seeds_draw_equal_vectors_and_every_element_is_a_sign(seed: int) -> None:
    drawn = random_hypervectors(3, 64, seed)
    assert torch.equal(drawn, random_hypervectors(3, 64, seed))
    assert set(drawn.unique().tolist()) <= {-1.0, 1.0}


@pytest.mark.parametrize("dim", [256, 1024, 4096])
def test_chance_similarities_concentrate_with_the_dimension(dim: int) -> None:
    vectors = random_hypervectors(200, dim, 3)
    others = similarities(vectors, vectors)[~torch.eye(200, dtype=torch.bool)]
    assert others.std().item() == pytest.approx(1 / math.sqrt(dim), rel=0.03)
    assert others.mean().abs().item() < 0.002


def test_similarity_is_the_cosine_of_an_independent_calculation() -> None:
    a, b = random_hypervectors(5, 128, 1), random_hypervectors(4, 128, 2)
    for i, x in enumerate(a.tolist()):
        for j, y in enumerate(b.tolist()):
            expected = sum(p * q for p, q in zip(x, y, strict=True)) / 128
            assert similarities(a, b)[i, j].item() == pytest.approx(expected, abs=1e-6)


def test_bipolar_sends_zero_to_minus_one() -> None:
    assert bipolar(torch.tensor([0.0, 1e-6, -3.0, 2.0])).tolist() == [-1.0, 1.0, -1.0, 1.0]


def test_a_two_pair_encoding_unbinds_to_its_answer_at_a_half_and_the_constant_knows_half_of_it() -> None:
    words = [f"w{i}" for i in range(400)]
    codebook = Codebook.draw(words, 4096, 0)
    rows = [words[4 * i : 4 * i + 4] for i in range(100)]
    examples = [Example("", ((a, b), (c, d))) for a, b, c, d in rows]
    encoded = codebook.encode_all(examples)
    assert (encoded < 0).double().mean().item() == pytest.approx(0.75, abs=0.005)
    cosines = torch.stack(
        [
            similarities(bind(v, codebook[e.key]), codebook.vectors)
            for v, e in zip(encoded, examples, strict=True)
        ]
    )
    wanted = torch.tensor([codebook.index[e.target] for e in examples])
    assert torch.equal(cosines.argmax(-1), wanted)
    assert cosines[torch.arange(100), wanted].mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    "example",
    [
        Example("", features=("w1",)),
        Example("", (("w1", "w2"),)),
        Example("", features=("w1", "w2", "w3")),
        Example("", (("w1", "w2"), ("w3", "w4")), ("w5",)),
    ],
    ids=["word", "pair", "bundle", "mixed"],
)
def test_encodings_are_sums_of_products_made_bipolar(example: Example) -> None:
    codebook = Codebook.draw([f"w{i}" for i in range(9)], 128, 5)
    total = sum(
        (codebook[a] * codebook[b] for a, b in example.pairs),
        start=sum((codebook[w] for w in example.features), start=torch.zeros(128)),
    )
    assert torch.equal(codebook.encode(example), torch.where(total > 0, 1.0, -1.0))


def test_a_codebook_depends_on_the_set_of_concepts_alone() -> None:
    one, other = Codebook.draw(["b", "A", "c"], 64, 7), Codebook.draw(["C", "a", "b", "B"], 64, 7)
    assert one.concepts == other.concepts == ("a", "b", "c")
    assert one.digest() == other.digest() != Codebook.draw(["a", "b", "c"], 64, 8).digest()


def test_the_expected_error_is_what_simulation_finds() -> None:
    dim, concepts = 64, 100
    codebook = Codebook.draw([f"w{i}" for i in range(concepts)], dim, 0)
    generator = torch.Generator().manual_seed(1)
    picks = torch.stack([torch.randperm(concepts, generator=generator)[:4] for _ in range(2000)])
    names = codebook.concepts
    examples = [Example("", ((names[a], names[b]), (names[c], names[d]))) for a, b, c, d in picks.tolist()]
    unbound = bind(codebook.encode_all(examples), codebook.vectors[picks[:, 2]])
    wrong = (similarities(unbound, codebook.vectors).argmax(-1) != picks[:, 3]).double().mean().item()
    assert expected_error(dim, concepts) == pytest.approx(wrong, abs=0.03)
    assert wrong > 0.01
    assert expected_error(4096, 3000) < 1e-12


def test_the_threshold_keeps_its_distance_from_chance() -> None:
    assert default_threshold(4096) == pytest.approx(0.1)
    assert default_threshold(1024) == pytest.approx(0.2)
