"""Encoders are trained where they are wanted, within what was asked for."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
import torch

from lensd_api import Context, Exhausted
from lensd_server.engine.models.working import PeakOfTensors
from lensd_vsa_probe.placing import Place, place_to_train, training_bytes
from lensd_vsa_probe.training import Data, Recipe, Trainer


@dataclass
class FakeWorkspace:
    device: str


@dataclass
class FakeContext:
    """A model on ``cuda:0`` with ``room`` bytes beside it."""

    room: int
    warnings: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    opened: list[str] = field(default_factory=list[str])

    @asynccontextmanager
    async def workspace(
        self, size_bytes: int, *, device: str = "model"
    ) -> AsyncGenerator[FakeWorkspace, None]:
        if device == "model" and size_bytes > self.room:
            raise Exhausted(f"needs {size_bytes} bytes where {self.room} are left", reason="NO_ROOM")
        place = "cpu" if device == "cpu" else "cuda:0"
        self.opened.append(place)
        yield FakeWorkspace(place)
        self.opened.remove(place)

    def warn(self, reason: str, message: str) -> None:
        self.warnings.append((reason, message))


async def placed(ctx: FakeContext, wanted: Place, size: int) -> str:
    async with place_to_train(cast("Context", ctx), wanted, size) as work:
        assert ctx.opened == [work.device], "it is held while it is worked in"
    assert not ctx.opened
    return work.device


@pytest.mark.parametrize(("wanted", "device"), [("auto", "cuda:0"), ("model", "cuda:0"), ("cpu", "cpu")])
async def test_encoders_are_trained_where_they_are_wanted(wanted: Place, device: str) -> None:
    ctx = FakeContext(room=100)
    assert await placed(ctx, wanted, 100) == device
    assert not ctx.warnings


async def test_auto_takes_the_cpu_where_the_device_has_no_room_and_says_so() -> None:
    ctx = FakeContext(room=100)
    assert await placed(ctx, "auto", 101) == "cpu"
    assert ctx.warnings == [
        ("TRAINED_ON_CPU", "encoders are trained on the CPU: needs 101 bytes where 100 are left")
    ]


async def test_the_models_device_without_room_is_refused_with_both_numbers() -> None:
    with pytest.raises(Exhausted, match="needs 101 bytes where 100"):
        await placed(FakeContext(room=100), "model", 101)


RECIPE = Recipe(
    width=64,
    dropout=0.3,
    batch=16,
    epochs=2,
    learning_rate=5e-3,
    weight_decay=1e-4,
    schedule="one_cycle",
    patience=None,
    seed=5,
)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"patience": 2},
        {"width": 512, "batch": 4},  # weights are most of it
        {"width": 8, "batch": 200},  # what a step keeps of its rows
        {"width": 8, "batch": 2},  # the rows themselves
    ],
)
def test_training_takes_what_was_asked_for_and_not_much_less(changes: dict[str, Any]) -> None:
    recipe = replace(RECIPE, **changes)
    rows, d_in, dim, validating = 400, 96, 256, 8
    asked = training_bytes(
        rows=rows,
        d_in=d_in,
        width=recipe.width,
        dim=dim,
        batch=recipe.batch,
        keeps_best=recipe.patience is not None,
        validating=validating,
    )
    with PeakOfTensors() as watched:
        # Made inside, as copying them to another device would make them.
        states, targets = torch.randn(rows, d_in), torch.ones(rows, dim)
        data = Data(states[validating:], targets[validating:], states[:validating], targets[:validating])
        trainer = Trainer(data, recipe)
        while not trainer.done:
            trainer.run(0.0, lambda: 0.0)
    assert 0.5 * asked < watched.peak <= asked
