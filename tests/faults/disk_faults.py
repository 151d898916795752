"""What happens to files: weights that change, disks that are full."""

import itertools
import random
import resource
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from lensd_client import Client
from lensd_client.errors import ResourceExhausted, Unavailable
from tests.faults.matrix import Fault
from tests.faults.site import VICTIM, Site
from tests.faults.traffic import PROMPTS, ask, is_right

_SWAPS = 6


def _weights(site: Site) -> Path:
    return site.folder / VICTIM / "model.safetensors"


def _load(client: Client) -> None:
    for _ in client.load(VICTIM):
        pass


def _truncated(site: Site) -> str:
    file = _weights(site)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with site.client() as client:
        with pytest.raises(Unavailable) as failed:
            _load(client)
        assert failed.value.reason in ("LOAD_FAILED", "INCOMPLETE_CHECKPOINT")
        assert client.model(VICTIM).state == "failed"
        assert client.health() == "SERVING"
        file.write_bytes(whole)
        _load(client)
        assert is_right(ask(client, PROMPTS[0], VICTIM), site.right[PROMPTS[0]])
        client.unload(VICTIM)
    return "UNAVAILABLE `LOAD_FAILED`; loads once the file is whole again"


def _overwritten_while_resident(site: Site) -> str:
    """In place, as ``cp`` does it: what is mapped from the file would change with it, or end the process."""
    file = _weights(site)
    whole = file.read_bytes()
    with site.client() as client:
        _load(client)
        try:
            with file.open("r+b") as opened:
                opened.write(bytes(len(whole)))
            assert is_right(ask(client, PROMPTS[1], VICTIM), site.right[PROMPTS[1]])
            file.write_bytes(b"")
            assert is_right(ask(client, PROMPTS[2], VICTIM), site.right[PROMPTS[2]])
        finally:
            file.write_bytes(whole)
        client.unload(VICTIM)
    return "the same answers as before, from the weights that were loaded"


def _swapped_while_loading(site: Site) -> str:
    """Two versions of the weights take each other's place several times a second."""
    from safetensors.torch import load_file, save_file

    file = _weights(site)
    versions = {"a": file.with_suffix(".a"), "b": file.with_suffix(".b")}
    shutil.copy(file, versions["a"])
    save_file({name: w * 1.5 for name, w in load_file(file).items()}, versions["b"], {"format": "pt"})
    by_revision: dict[str, np.ndarray] = {}
    with site.client() as client:
        for version in versions.values():
            _replace(file, version)
            _load(client)
            by_revision[client.model(VICTIM).revision] = ask(client, PROMPTS[0], VICTIM)
            client.unload(VICTIM)
        assert len(by_revision) == 2
        done = threading.Event()

        def swap() -> None:
            pause = random.Random(11)
            for version in itertools.cycle(versions.values()):
                if done.wait(pause.uniform(0.0, 0.2)):
                    return
                _replace(file, version)

        swapping = threading.Thread(target=swap)
        swapping.start()
        refused: list[str] = []
        try:
            for _ in range(_SWAPS):
                try:
                    _load(client)
                except Unavailable as error:
                    refused.append(error.reason)
                    continue
                answer = ask(client, PROMPTS[0], VICTIM)
                assert is_right(answer, by_revision[client.model(VICTIM).revision]), (
                    "weights of another revision"
                )
                client.unload(VICTIM)
        finally:
            done.set()
            swapping.join()
            _replace(file, versions["a"])
            for version in versions.values():
                version.unlink()
    assert set(refused) <= {"CHECKPOINT_CHANGED"}
    return (
        f"{len(refused)} of {_SWAPS} loads UNAVAILABLE `CHECKPOINT_CHANGED`; no answer under another revision"
    )


def _replace(file: Path, version: Path) -> None:
    """A fresh copy each time, so that no two have the same dates."""
    aside = file.with_suffix(".aside")
    shutil.copyfile(version, aside)
    aside.replace(file)


def _disk_full(site: Site) -> str:
    """No file may grow any more, the log's own included: what the kernel does on a full disk."""
    process = site.process
    before = process.rlimit(resource.RLIMIT_FSIZE)
    with site.client() as client:
        client.analyze("keeps", params={"artifact": "early", "size": 100_000}).finish()
        process.rlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            with pytest.raises(ResourceExhausted) as refused:
                client.analyze("keeps", params={"artifact": "late", "size": 100_000}).finish()
            assert refused.value.reason == "DISK_FULL"
            # A checkpoint that cannot be saved costs no analysis, nor a cache that cannot be written a load.
            client.analyze("counts", params={"to": 3}).finish()
            (site.folder / VICTIM / "config.json").touch()
            _load(client)
            client.unload(VICTIM)
        finally:
            process.rlimit(resource.RLIMIT_FSIZE, before)
        assert [a.name for a in client.artifacts() if a.name in ("early", "late")] == ["early"]
        opened = client.analyze("opens", params={"artifact": "early"}).finish()
        assert opened["opened"]["size"] == 100_000
        client.analyze("keeps", params={"artifact": "late", "size": 100_000}).finish()
    assert not list(site.state.rglob(".writing-*"))
    return "RESOURCE_EXHAUSTED `DISK_FULL` for the artifact; checkpoints and digests are done without"


DISK_FAULTS = (
    Fault("weights cut short before a load", _truncated),
    Fault("weights overwritten and cut short while resident", _overwritten_while_resident),
    Fault("weights swapped in the middle of loads", _swapped_while_loading),
    Fault("disk full for state, cache and log", _disk_full),
)
