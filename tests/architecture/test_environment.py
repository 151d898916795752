"""The daemon and its clients share an environment, and neither minds what the other reads."""

from pathlib import Path

import click
import pytest

from lensd_client.lensctl.app import lensctl
from lensd_server.settings import load_settings

VARIABLES = [
    option.envvar
    for option in lensctl.params
    if isinstance(option, click.Option) and isinstance(option.envvar, str)
]


def test_lensctl_reads_variables_of_its_own() -> None:
    assert {"LENSD_TARGET", "LENSD_TOKEN_FILE"} <= set(VARIABLES)


@pytest.mark.parametrize("variable", VARIABLES)
def test_the_daemon_starts_beside_what_lensctl_reads(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "x")
    load_settings()
