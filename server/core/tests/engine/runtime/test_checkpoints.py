"""Checkpoints: an identical request goes on, another one does not, and damage means a fresh start."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lensd_api import Analyzer, BaseParams, Record, TooLarge
from lensd_server.engine.artifacts import Origin
from lensd_server.engine.checkpoints import DiskCheckpoints, request_key

ORIGIN = Origin("lensd-probe", "fit", "0.1.0", "m", "a" * 64)
BLOBS = {"states": b"\x00" * 100, "epoch": b"7"}


class Seed(BaseParams):
    seed: int = 0


@pytest.fixture
def disk(tmp_path: Path) -> DiskCheckpoints:
    return DiskCheckpoints(tmp_path / "checkpoints", max_bytes=1000, kept=3)


def test_the_newest_is_loaded_until_it_is_discarded(disk: DiskCheckpoints) -> None:
    assert disk.load("k") == {}
    disk.save("k", {"epoch": b"1"})
    disk.save("k", BLOBS)
    assert disk.load("k") == BLOBS
    disk.discard("k")
    assert disk.load("k") == {}


@pytest.mark.parametrize("cut", [0, 4, 40, 150])
def test_a_truncated_one_counts_as_absent(disk: DiskCheckpoints, tmp_path: Path, cut: int) -> None:
    disk.save("k", BLOBS)
    path = tmp_path / "checkpoints" / "k"
    path.write_bytes(path.read_bytes()[:cut])
    assert disk.load("k") == {}


def test_a_flipped_bit_counts_as_absent(disk: DiskCheckpoints, tmp_path: Path) -> None:
    disk.save("k", BLOBS)
    path = tmp_path / "checkpoints" / "k"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert disk.load("k") == {}


def test_only_the_newest_are_kept(disk: DiskCheckpoints, tmp_path: Path) -> None:
    for number in range(5):
        disk.save(f"k{number}", BLOBS)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3
    assert disk.load("k4") == BLOBS


def test_a_flood_of_one_caller_costs_nobody_else_the_only_one(disk: DiskCheckpoints) -> None:
    disk.save("a", BLOBS, "quiet")
    for number in range(5):
        disk.save(f"k{number}", BLOBS, "flooding")
    assert disk.load("a") == BLOBS
    assert [number for number in range(5) if disk.load(f"k{number}")] == [3, 4]


def test_of_more_callers_than_are_kept_whoever_saved_last_counts(disk: DiskCheckpoints) -> None:
    for number in range(4):
        disk.save(f"k{number}", BLOBS, f"caller {number}")
    assert [number for number in range(4) if disk.load(f"k{number}")] == [1, 2, 3]


def test_what_is_being_written_by_another_is_left_alone(disk: DiskCheckpoints, tmp_path: Path) -> None:
    writing = tmp_path / "checkpoints" / ".writing-x"
    writing.parent.mkdir()
    writing.write_bytes(b"half")
    for number in range(5):
        disk.save(f"k{number}", BLOBS)
    assert writing.exists()
    assert [number for number in range(5) if disk.load(f"k{number}")] == [2, 3, 4]


def test_a_damaged_one_is_nobodys_and_goes_like_any_other(disk: DiskCheckpoints, tmp_path: Path) -> None:
    disk.save("k", BLOBS, "a")
    (tmp_path / "checkpoints" / "k").write_bytes(b"\xff" * 20)
    for number in range(3):
        disk.save(f"k{number}", BLOBS, f"caller {number}")
    assert not (tmp_path / "checkpoints" / "k").exists()


def test_too_much_is_refused(disk: DiskCheckpoints) -> None:
    with pytest.raises(TooLarge, match="checkpoint"):
        disk.save("k", {"x": bytes(1001)})


def test_what_makes_requests_identical() -> None:
    tensors = {"t": torch.arange(3.0)}
    key = request_key(ORIGIN, Seed(), tensors)
    assert key == request_key(ORIGIN, Seed(seed=0), {"t": torch.arange(3.0)})
    renamed = Origin("lensd-probe", "fit", "0.1.0", "other name", "a" * 64)
    assert key == request_key(renamed, Seed(), tensors)
    others = [
        request_key(ORIGIN, Seed(seed=1), tensors),
        request_key(ORIGIN, Seed(), {"t": torch.arange(3.0) + 1}),
        request_key(ORIGIN, Seed(), {"t": torch.arange(3.0).reshape(3, 1)}),
        request_key(Origin("lensd-probe", "fit", "0.1.0", "m", "b" * 64), Seed(), tensors),
        request_key(Origin("lensd-probe", "fit", "0.1.1", "m", "a" * 64), Seed(), tensors),
    ]
    assert len({key, *others}) == 6


class Counter(Analyzer):
    """Counts on from where it stopped; stores what it came to."""

    name = "counter"

    class Params(BaseParams):
        until: int
        fail: bool = False

    async def analyze(self, params: Params, ctx: Any) -> AsyncIterator[Any]:
        start = int((await ctx.checkpoint.load()).get("n", b"0"))
        await ctx.checkpoint.save({"n": str(params.until).encode()})
        if start == 0:
            raise RuntimeError("cut off")
        info = await ctx.artifacts.store("count", {"n": str(start).encode()}, {"start": start})
        opened = await ctx.artifacts.open(info.reference)
        yield Record("count", {"start": int(opened.blobs["n"]), "revision": info.model_revision})


class PlainCounter(Counter):
    """The same as a plain generator."""

    name = "plain-counter"

    def analyze(self, params: Any, ctx: Any) -> Iterator[Any]:
        start = int(ctx.checkpoint.load().get("n", b"0"))
        ctx.checkpoint.save({"n": str(params.until).encode()})
        if start == 0:
            raise RuntimeError("cut off")
        info = ctx.artifacts.store("count", {"n": str(start).encode()})
        opened = ctx.artifacts.open(info.reference)
        yield Record("count", {"start": int(opened.blobs["n"]), "revision": info.model_revision})


@pytest.mark.parametrize("analyzer", [Counter(), PlainCounter()], ids=["async", "plain"])
async def test_an_identical_request_goes_on_and_a_complete_one_starts_afresh(
    make_rig: Callable[..., Any], analyzer: Analyzer
) -> None:
    rig = make_rig()
    with pytest.raises(Exception, match="failed"):
        await rig.results(analyzer, model="llama", until=3)
    (found,) = await rig.results(analyzer, model="llama", until=3)
    revision = rig.resident("llama").loaded.card.revision
    assert found.values == {"start": 3, "revision": revision}
    with pytest.raises(Exception, match="failed"):
        await rig.results(analyzer, model="llama", until=3)
