"""Wheels of every distribution, built once."""

from pathlib import Path

import pytest

from tests.packaging.environments import Environment, build_wheels, link_third_party, make_environment

FOLDERS = [
    "proto",
    "server/api",
    "server/core",
    "clients/python",
    "plugins/dla",
    "plugins/graphtracer",
    "plugins/shop_r1",
    "plugins/vsa_probe",
    "plugins/template",
    ".",
]


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the wheel of every distribution."""
    return build_wheels(FOLDERS, tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="session")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that shows an environment this one's packages, lensd's own excepted."""
    return link_third_party(tmp_path_factory.mktemp("third_party"))


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, wheels: Path, third_party: Path) -> Environment:
    """An environment with the meta-distribution installed from wheels."""
    environment = make_environment(tmp_path_factory.mktemp("lensd") / "venv", wheels, third_party)
    environment.install("lensd", index=False)
    return environment
