"""Trains one encoder in slices that can be stopped between batches and gone on with elsewhere.

Invariant: what is drawn depends on the seed and the step alone, so a fit that was cut off ends in the
same weights as one that was not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lensd_vsa_probe.algebra import bipolar
from lensd_vsa_probe.encoder import Encoder, initialise, loss
from lensd_vsa_probe.listing import floats
from lensd_vsa_probe.schedule import Schedule, one_cycle, warm_restarts


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an encoder is trained; ``patience`` in epochs, ``None`` to run all of them."""

    width: int
    dropout: float
    batch: int
    epochs: int
    learning_rate: float
    weight_decay: float
    schedule: Schedule
    patience: int | None
    seed: int


@dataclass(frozen=True, slots=True)
class Data:
    """Standardised states [n, d] with their hypervectors [n, dim], for training and validation."""

    states: Tensor
    targets: Tensor
    held_states: Tensor
    held_targets: Tensor

    def to(self, device: str) -> "Data":
        """The same on ``device``."""
        parts = (self.states, self.targets, self.held_states, self.held_targets)
        return Data(*(part.to(device) for part in parts))


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch came to; cosines are of the validation rows."""

    number: int
    train_loss: float
    validation_loss: float
    cosine: float
    bit_accuracy: float


class Trainer:
    """One encoder, its optimizer and where it stands, all on ``device``.

    Drawn weights and the order of rows are the same on every device; what is dropped out is not.
    """

    def __init__(self, data: Data, recipe: Recipe, device: str = "cpu") -> None:
        self.data, self.recipe, self._device = data.to(device), recipe, device
        d_in, dim = data.states.shape[1], data.targets.shape[1]
        self.encoder = Encoder(d_in, recipe.width, dim, recipe.dropout)
        initialise(self.encoder, recipe.seed)
        self.encoder.to(device)
        # Fused: a fifth of the time of the plain loop over weights and moments, on a CPU as well.
        self._optimizer = torch.optim.AdamW(
            self.encoder.parameters(),
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self._ordering, self._dropping = torch.Generator(), torch.Generator(device)
        self.step = 0
        self._losses = 0.0
        self._best: dict[str, Tensor] = {}
        self._best_loss, self._stale = float("inf"), 0
        self._batches = -(-len(data.states) // recipe.batch)

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self.step // self._batches

    @property
    def done(self) -> bool:
        """Whether all epochs have run, or patience is at its end."""
        spent = self.recipe.patience is not None and self._stale >= self.recipe.patience
        return self.epoch >= self.recipe.epochs or spent

    def run(self, seconds: float, clock: Callable[[], float]) -> Epoch | None:
        """Batches until ``seconds`` are over or the epoch is, at least one; the epoch once it is complete."""
        until = clock() + seconds
        while True:
            self._batch()
            if self.step % self._batches == 0:
                return self._close_epoch()
            if clock() >= until:
                return None

    def finish(self) -> Encoder:
        """The encoder to keep, on the CPU: the best one seen where patience was asked for, else the last."""
        if self._best:
            self.encoder.load_state_dict(self._best)
        return self.encoder.cpu()

    def save(self) -> dict[str, Tensor]:
        """Everything :meth:`restore` needs, copied to the CPU."""
        state: dict[str, Tensor] = {f"encoder.{n}": value for n, value in self.encoder.state_dict().items()}
        state |= {f"best.{name}": value for name, value in self._best.items()}
        for number, moments in self._optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
        saved = {name: value.detach().to("cpu", copy=True) for name, value in state.items()}
        saved["place"] = torch.tensor(
            [self.step, self._losses, self._best_loss, self._stale], dtype=torch.float64
        )
        return saved

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Goes on where :meth:`save` was called."""
        self.encoder.load_state_dict(_under("encoder.", saved))
        self._best = {name: value.to(self._device) for name, value in _under("best.", saved).items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer.", saved).items():
            number, _, moment = name.partition(".")
            moments.setdefault(int(number), {})[moment] = value
        state = self._optimizer.state_dict()
        self._optimizer.load_state_dict({**state, "state": moments})
        step, self._losses, self._best_loss, stale = floats(saved["place"])
        self.step, self._stale = int(step), int(stale)

    def _batch(self) -> None:
        within = self.step % self._batches
        self._seed(self._ordering, 1, self.epoch)
        order = torch.randperm(len(self.data.states), generator=self._ordering)
        rows = order[within * self.recipe.batch : (within + 1) * self.recipe.batch].to(self._device)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate()
        with torch.enable_grad():
            self._seed(self._dropping, 2, self.step)
            logits = self.encoder(self.data.states[rows], self._dropping)
            value = loss(logits, self.data.targets[rows])
            torch.autograd.backward(value)
        advance: Any = self._optimizer
        advance.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._losses = (0.0 if within == 0 else self._losses) + value.item() * len(rows)
        self.step += 1

    def _rate(self) -> float:
        if self.recipe.schedule == "one_cycle":
            return one_cycle(self.step, self.recipe.epochs * self._batches, self.recipe.learning_rate)
        return warm_restarts(self.step / self._batches, self.recipe.learning_rate)

    def _seed(self, generator: torch.Generator, purpose: int, number: int) -> None:
        generator.manual_seed(self.recipe.seed * 4_000_037 + number * 4 + purpose)

    def _close_epoch(self) -> Epoch:
        with torch.no_grad():
            logits = self.encoder(self.data.held_states)
            value = loss(logits, self.data.held_targets).item()
        if self.recipe.patience is not None:
            self._stale = 0 if value < self._best_loss else self._stale + 1
            if value < self._best_loss:
                self._best_loss = value
                self._best = {name: v.clone() for name, v in self.encoder.state_dict().items()}
        agreement = (bipolar(logits) * self.data.held_targets).mean().item()
        return Epoch(
            number=self.epoch,
            train_loss=self._losses / len(self.data.states),
            validation_loss=value,
            cosine=agreement,
            bit_accuracy=(1 + agreement) / 2,
        )


def _under(prefix: str, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)}
