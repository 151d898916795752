"""The encoders that one fit trains: the probe itself and the controls that say what it is worth."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lensd_vsa_probe.corpus import Example
from lensd_vsa_probe.params import FitParams
from lensd_vsa_probe.placing import training_bytes
from lensd_vsa_probe.splits import VALIDATING, Parts, Split, split
from lensd_vsa_probe.states import States
from lensd_vsa_probe.training import Data, Recipe

Control = Literal["", "permuted_states", "shuffled_targets", "layer_0"]


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One encoder to train: which rows are held out, and what was broken on purpose."""

    name: str
    split: Split
    control: Control = ""


@dataclass(frozen=True, slots=True)
class Standard:
    """Mean and deviation [d] of the training rows' pooled states."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, states: Tensor) -> "Standard":
        """A feature that never varies keeps its scale."""
        deviation = states.std(0, correction=0)
        return cls(states.mean(0), torch.where(deviation > 1e-6, deviation, 1.0))

    def apply(self, states: Tensor) -> Tensor:
        """[n, d] -> [n, d]."""
        return (states - self.mean) / self.deviation


@dataclass(frozen=True, slots=True)
class Task:
    """The rows of one run, ready to train and test on."""

    run: TrainingRun
    standard: Standard
    data: Data
    test_rows: tuple[int, ...]
    test_states: Tensor


def plan_runs(params: FitParams, *, paired: bool) -> list[TrainingRun]:
    """The probe first: its scores are there while the controls still run."""
    runs = [TrainingRun("probe", params.split)]
    if paired and params.split != "combination":
        runs.append(TrainingRun("combination", "combination"))
    runs.append(TrainingRun("permuted_states", params.split, "permuted_states"))
    if params.evaluation == "full":
        if paired and params.split != "example_pair":
            runs.append(TrainingRun("example_pair", "example_pair"))
        if paired and params.split != "rows":
            runs.append(TrainingRun("rows", "rows"))
        runs.append(TrainingRun("shuffled_targets", params.split, "shuffled_targets"))
        runs.append(TrainingRun("layer_0", params.split, "layer_0"))
    return runs


def prepare(
    run: TrainingRun, examples: Sequence[Example], targets: Tensor, states: States, params: FitParams
) -> Task:
    """Splits, breaks what the control breaks, and standardises by the training rows alone."""
    parts: Parts = split(examples, run.split, params.test_share, params.seed)
    source = states.embedded if run.control == "layer_0" else states.pooled
    if run.control == "permuted_states":
        # Every text gets another one's state, in training and in the test.
        source = source[_permutation(len(source), params.seed + 17)]
    train, held = list(parts.train), list(parts.validation)
    shown = targets[train]
    if run.control == "shuffled_targets":
        # States stay, targets are dealt out anew in training; the test asks for the true ones.
        shown = shown[_permutation(len(shown), params.seed + 18)]
    standard = Standard.of(source[train])
    data = Data(standard.apply(source[train]), shown, standard.apply(source[held]), targets[held])
    return Task(run, standard, data, parts.test, standard.apply(source[list(parts.test)]))


def recipe_of(params: FitParams, run: TrainingRun) -> Recipe:
    """Controls train for fewer epochs: what they cannot know, time does not teach them."""
    recipe = Recipe(
        width=params.width or params.dim,
        dropout=params.dropout,
        batch=params.batch,
        epochs=params.epochs,
        learning_rate=params.learning_rate,
        weight_decay=params.weight_decay,
        schedule=params.schedule,
        patience=params.patience,
        seed=params.seed,
    )
    if not run.control:
        return recipe
    return replace(recipe, epochs=params.control_epochs or max(1, params.epochs // 3))


def bytes_to_train(params: FitParams, rows: int, d_in: int) -> int:
    """Bytes that training one encoder takes, of a corpus of ``rows`` texts pooled to ``d_in``."""
    return training_bytes(
        rows=rows,
        d_in=d_in,
        width=params.width or params.dim,
        dim=params.dim,
        batch=params.batch,
        keeps_best=params.patience is not None,
        validating=max(1, rows // VALIDATING),
    )


def _permutation(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
