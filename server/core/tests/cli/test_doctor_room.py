"""The doctor's word on memory: which models fit, alone and together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lensd_server.doctor import Finding, Verdict
from lensd_server.doctor.room import examine_room
from lensd_server.engine import memory
from lensd_server.engine.device import Devices
from lensd_server.settings import Settings

MIB = 2**20
#: Of every model here: weights of 10 MiB and the share for forwards.
NEEDED = "11.0 MiB on cpu"

Configured = Callable[..., Settings]


@pytest.fixture
def configured(tmp_path: Path) -> Configured:
    """Settings with models of 10 MiB by name, and a budget in MiB."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"weight": torch.zeros(10 * MIB // 4)}, folder / "model.safetensors")

    def configure(budget: float | None, **models: dict[str, Any]) -> Settings:
        with_source = {
            name: {"source": f"dir:{folder}", "device": "cpu", "max_cache_bytes": 0, **model}
            for name, model in models.items()
        }
        limits = {} if budget is None else {"memory_bytes": round(budget * MIB)}
        return Settings.model_validate({"limits": limits, "models": with_source})

    return configure


def found(settings: Settings) -> dict[str, Finding]:
    return {finding.what.removeprefix("memory for "): finding for finding in examine_room(settings)}


def test_a_model_that_fits_comes_with_both_numbers(configured: Configured) -> None:
    (finding,) = found(configured(12, a={})).values()
    assert (finding.verdict, finding.text) == (Verdict.FINE, f"needs {NEEDED}, of 12.0 MiB")


def test_keys_and_values_are_part_of_what_a_model_needs(configured: Configured) -> None:
    of_its_own = found(configured(12, a={"max_cache_bytes": 2 * MIB}))["a"]
    assert (of_its_own.verdict, "needs 13.0 MiB on cpu" in of_its_own.text) == (Verdict.BROKEN, True)
    usual = found(configured(16, a={"max_cache_bytes": None}))["a"]
    assert (usual.verdict, usual.text) == (Verdict.FINE, "needs 13.0 MiB on cpu, of 16.0 MiB")


def test_a_model_larger_than_the_whole_budget_can_never_be_loaded(configured: Configured) -> None:
    finding = found(configured(10, a={}))["a"]
    assert finding.verdict is Verdict.BROKEN
    assert finding.text == (
        f"needs {NEEDED}, and all models together may have 10.0 MiB: it can never be loaded"
    )
    assert "limits.memory_bytes" in finding.mend
    assert found(configured(10, a={"dtype": "bfloat16"}))["a"].verdict is Verdict.FINE


def test_preloaded_models_that_do_not_fit_together_are_named_with_both_numbers(
    configured: Configured,
) -> None:
    preload = {"preload": True}
    settings = configured(25, a=preload, b=preload, c=preload, d={})
    findings = found(settings)
    assert {name: findings[name].verdict for name in "abcd"} == dict.fromkeys("abcd", Verdict.FINE)
    together = findings["preloaded models"]
    assert together.verdict is Verdict.BROKEN
    assert together.text == (
        f"they do not fit together: c needs {NEEDED}, of which 3.0 MiB are left beside a and b"
    )
    fitting = found(configured(33, a=preload, b=preload, c=preload))["preloaded models"]
    assert (fitting.verdict, fitting.text) == (Verdict.FINE, "a and b and c take 33.0 MiB on cpu")


def test_what_others_use_of_the_machine_is_seen(
    configured: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 5 * MIB)
    finding = found(configured(64, a={}))["a"]
    assert (finding.verdict, finding.text) == (
        Verdict.NOTE,
        f"needs {NEEDED}, where only 5.0 MiB are free now",
    )


def test_without_a_budget_it_is_what_is_free_less_what_is_spared(
    configured: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 266 * MIB)
    finding = found(configured(None, a={}))["a"]
    assert (finding.verdict, "may have 10.0 MiB" in finding.text) == (Verdict.BROKEN, True)
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    assert "nobody says" in found(configured(None, a={}))["a"].text


def test_damaged_headers_are_broken_and_files_that_are_not_here_are_left_to_others(
    configured: Configured, tmp_path: Path
) -> None:
    (tmp_path / "model" / "model.safetensors").write_bytes(b"short")
    finding = found(configured(64, a={}))["a"]
    assert (finding.verdict, "damaged or incomplete" in finding.text) == (Verdict.BROKEN, True)
    preload = {"preload": True}
    absent = configured(64, a={"source": "dir:/nowhere", **preload}, b={"source": "hf:nobody/never@x"})
    assert found(absent) == {}


def test_preloaded_models_whose_size_nobody_knows_yet_are_named(configured: Configured) -> None:
    preload = {"preload": True}
    fetched_later = {"source": "hf:nobody/never-fetched@abc", **preload}
    findings = found(configured(64, a=preload, b=preload, later=fetched_later))
    assert findings["preloaded models"].text.endswith("; not counted, since not here yet: later")


@pytest.mark.parametrize("devices", [("cpu",), ("cpu", "cuda:0")])
def test_limits_of_devices_that_are_not_here_are_named(
    devices: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Devices, "names", devices)
    limits = dict.fromkeys(("cpu", "cuda", "cuda:0", "cuda:9"), "1 GiB")
    finding = found(Settings.model_validate({"limits": {"memory_bytes": limits}}))["limits.memory_bytes"]
    assert finding.verdict is Verdict.NOTE
    absent = "cuda:9" if "cuda:0" in devices else "cuda, cuda:0, cuda:9"
    assert finding.text == (f"limits {absent}, which this machine does not have; it has {', '.join(devices)}")
    limits.pop("cuda:9")
    named = found(Settings.model_validate({"limits": {"memory_bytes": limits}}))
    assert ("limits.memory_bytes" in named) == ("cuda:0" not in devices)
