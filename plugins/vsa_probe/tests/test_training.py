"""Training draws from its seed alone, goes on where it stopped, and learns what can be learned."""

from dataclasses import replace

import pytest
import torch

from lensd_vsa_probe.algebra import random_hypervectors
from lensd_vsa_probe.encoder import Encoder, draw_kept, loss
from lensd_vsa_probe.linear import PENALTIES, predict, ridge
from lensd_vsa_probe.schedule import one_cycle, warm_restarts
from lensd_vsa_probe.training import Data, Recipe, Trainer

RECIPE = Recipe(
    width=32,
    dropout=0.3,
    batch=16,
    epochs=6,
    learning_rate=5e-3,
    weight_decay=1e-4,
    schedule="one_cycle",
    patience=None,
    seed=5,
)


def never() -> float:
    return 0.0


def rows(count: int = 60) -> Data:
    """Twelve kinds of states, each with a hypervector of its own, in noise."""
    generator = torch.Generator().manual_seed(0)
    centres, targets = torch.randn(12, 20, generator=generator), random_hypervectors(12, 64, 1)
    kind = torch.arange(count) % 12
    states = centres[kind] + 0.1 * torch.randn(count, 20, generator=generator)
    return Data(states[12:], targets[kind][12:], states[:12], targets[kind][:12])


def finish(trainer: Trainer) -> Trainer:
    while not trainer.done:
        trainer.run(0.0, never)
    return trainer


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.finish().parameters()])


@pytest.mark.parametrize("schedule", ["one_cycle", "warm_restarts"])
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_a_resumed_training_ends_in_the_same_weights(schedule: str, steps: int) -> None:
    recipe = replace(RECIPE, schedule=schedule, patience=3)
    whole = weights(finish(Trainer(rows(), recipe)))
    first = Trainer(rows(), recipe)
    for _ in range(steps):
        first.run(0.0, never)
    torch.manual_seed(1234)  # what others draw from the global generator does not matter
    second = Trainer(rows(), recipe)
    second.restore(first.save())
    assert torch.equal(weights(finish(second)), whole)


def test_slices_do_not_change_the_weights() -> None:
    ticks = iter(range(10_000))
    sliced = Trainer(rows(), RECIPE)
    while not sliced.done:
        sliced.run(3.0, lambda: float(next(ticks)))
    assert torch.equal(weights(sliced), weights(finish(Trainer(rows(), RECIPE))))


def test_another_seed_ends_elsewhere() -> None:
    one, other = (finish(Trainer(rows(), replace(RECIPE, seed=seed))) for seed in (1, 2))
    assert not torch.equal(weights(one), weights(other))


def test_what_can_be_learned_is_learned_and_patience_ends_what_cannot() -> None:
    trainer = Trainer(rows(), replace(RECIPE, epochs=60))
    last = None
    while not trainer.done:
        last = trainer.run(0.0, never) or last
    assert last is not None
    assert last.bit_accuracy > 0.95
    assert last.cosine == pytest.approx(2 * last.bit_accuracy - 1)
    noise = rows()
    hopeless = replace(noise, held_targets=-noise.held_targets)
    stopped = finish(Trainer(hopeless, replace(RECIPE, epochs=500, patience=4)))
    assert stopped.epoch < 100


@pytest.mark.parametrize("count", [30, 200])  # fewer rows than features, and more: both normal systems
def test_ridge_is_the_minimum_of_what_it_minimises(count: int) -> None:
    data = rows(count)
    found = ridge(data.states, data.targets, data.held_states, data.held_targets)
    agreement = (predict(found, data.held_states) == data.held_targets).double().mean().item()
    assert agreement > 0.95
    x = torch.cat([data.states, torch.ones(len(data.states), 1)], 1).double()
    slope = x.T @ (x @ found - data.targets.double())
    # At the minimum the slope of the error is that of the penalty, for one of the penalties tried.
    assert min((slope + p * len(x) * found).abs().max().item() for p in PENALTIES) < 1e-8


@pytest.mark.parametrize("dropout", [0.0, 0.2, 0.5, 0.999])
def test_dropout_keeps_the_share_it_is_told(dropout: float) -> None:
    like = torch.empty(333, 301)  # no multiple of what one draw yields
    kept = draw_kept(like, dropout, torch.Generator().manual_seed(0))
    assert kept.shape == like.shape
    assert kept.double().mean().item() == pytest.approx(1 - dropout, abs=0.006)
    again = draw_kept(like, dropout, torch.Generator().manual_seed(0))
    assert torch.equal(kept, again)
    # Neighbours come from one number and must not look alike for it.
    agreement = (kept[:, 1:] == kept[:, :-1]).double().mean().item()
    assert agreement == pytest.approx(dropout**2 + (1 - dropout) ** 2, abs=0.006)


def test_the_published_sizes_are_those_of_the_encoder() -> None:
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in Encoder(d, 4096, 4096, 0.5).parameters()) for d in (1024, 5120)]
    assert [round(size / 1e6) for size in sizes] == [55, 71]


def test_the_loss_is_as_published() -> None:
    logits, targets = torch.tensor([[0.5, -1.0]]), torch.tensor([[1.0, 1.0]])
    p = torch.sigmoid(logits)
    expected = -torch.log(p).mean() + 0.1 * ((0.5 - 1) ** 2 + (-1 - 1) ** 2) / 2
    assert loss(logits, targets).item() == pytest.approx(expected.item(), rel=1e-6)


def test_rates_rise_fall_and_restart_lower() -> None:
    rates = [one_cycle(step, 100, 1.0) for step in range(100)]
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) == 30
    assert rates[0] == pytest.approx(0.04)
    assert rates[-1] < 0.01
    assert warm_restarts(0, 1.0) == pytest.approx(1.0)
    assert warm_restarts(99.99, 1.0) < 1e-3
    assert warm_restarts(100, 1.0) == pytest.approx(0.9)
    assert warm_restarts(300, 1.0) == pytest.approx(0.81)
