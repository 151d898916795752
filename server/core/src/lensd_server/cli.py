"""The ``lensd`` command. What needs torch or gRPC is imported by the command that needs it."""

import gc
import json
import os
import signal
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from packaging.version import Version

from lensd_server import __version__
from lensd_server.settings import (
    EMBEDDED_NAME,
    Settings,
    SettingsError,
    default_config,
    load_settings,
    parse_model_flag,
)
from lensd_server.token_command import token

_CONFIG = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Settings file; lensd.toml of the working directory where it exists.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="lensd")
def main() -> None:
    """Keeps language models resident and runs analyses of them for other services.

    Settings come from flags, then environment variables such as LENSD_SERVER__LISTEN, then
    lensd.toml. Talk to a running daemon with lensctl.
    """


main.add_command(token)


@main.command()
@_CONFIG
@click.option("--listen", metavar="HOST:PORT", help="Where callers connect [127.0.0.1:50051].")
@click.option(
    "--admin-listen", metavar="HOST:PORT", help="Where operators connect, or unix:/path [127.0.0.1:50052]."
)
@click.option("--metrics-listen", metavar="HOST:PORT", help="/metrics, /livez, /readyz [127.0.0.1:9464].")
@click.option(
    "--state-dir", type=click.Path(path_type=Path, file_okay=False), help="Where artifacts are kept."
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME=SOURCE",
    help="A model to serve, resident from the start; may be repeated. SOURCE is hf:org/name@revision, "
    f"dir:/path, gguf:/path/file.gguf or pkg:package/file. Without any, {EMBEDDED_NAME} is served.",
)
def serve(
    config: Path | None,
    listen: str | None,
    admin_listen: str | None,
    metrics_listen: str | None,
    state_dir: Path | None,
    models: tuple[str, ...],
) -> None:
    """Runs the daemon until SIGTERM or SIGINT. Port 0 picks a free one. SIGHUP reads the settings again.

    When every model that is to be resident is, one line goes to standard output: lensd ready
    grpc=HOST:PORT metrics=HOST:PORT admin=HOST:PORT models=NAME,... Logs go to standard error.
    """
    server = {
        "listen": listen,
        "admin_listen": admin_listen,
        "metrics_listen": metrics_listen,
        "state_dir": state_dir,
    }
    # Until the daemon handles signals itself there is nothing to finish, to clean up or to read again.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Found once: a file that is gone at a reload is a mistake, not a return to the defaults.
    config = config or default_config()
    flags = {"server": {k: v for k, v in server.items() if v is not None}}
    settings = _settings(config, flags, models)
    # Half of a start are imports, whose objects all live on: collecting among them finds nothing, and
    # what is frozen is never looked at again.
    gc.disable()
    _prepare_allocator()
    from lensd_server.app import serve as run

    gc.freeze()
    gc.enable()
    sys.exit(run(settings, lambda: _read(config, flags, models)))


def _prepare_allocator() -> None:
    """Batches differ in shape all the time: by default, what one leaves behind on a GPU fits no other.

    torch reads this once, when it is imported.
    """
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the latter before torch 2.9
    if not any(name in os.environ for name in names):
        os.environ[names[0] if Version(metadata.version("torch")) >= Version("2.9") else names[1]] = (
            "expandable_segments:True"
        )


@main.command()
@_CONFIG
@click.option("--fix", is_flag=True, help="Run the commands that mend what they can.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines for people.")
def doctor(config: Path | None, fix: bool, as_json: bool) -> None:
    """Checks this machine and says how to mend what it finds. Exit status 1 if something is broken.

    Run it as the user, with the settings and where the daemon will run, before the daemon does.
    """
    from dataclasses import asdict

    from rich.console import Console

    from lensd_server.doctor import Verdict, examine, mend
    from lensd_server.reports import print_findings

    _quiet()
    settings = _settings(config, {}, ())
    console = Console(highlight=False, stderr=as_json)
    findings = list(examine(settings))
    if fix and any(finding.command for finding in findings if finding.verdict is Verdict.BROKEN):
        print_findings(console, findings)
        mend(findings)
        findings = list(examine(settings))
    if as_json:
        click.echo(json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        print_findings(console, findings)
    sys.exit(1 if any(finding.verdict is Verdict.BROKEN for finding in findings) else 0)


@main.command()
@_CONFIG
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def plugins(config: Path | None, as_json: bool) -> None:
    """Lists installed plugins, the analyzers they offer, and why one does not work."""
    from lensd_server.plugins import discover

    _quiet()
    records = discover(_settings(config, {}, ()).plugins.allow).plugins()
    if as_json:
        from dataclasses import asdict

        click.echo(json.dumps({"plugins": [asdict(record) for record in records]}, indent=2))
        return
    from rich.console import Console

    from lensd_server.reports import print_plugins

    print_plugins(Console(highlight=False), records)


@main.command("new-plugin")
@click.argument("name")
@click.option(
    "--dir",
    "parent",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Where to put the package [the working directory].",
)
def new_plugin(name: str, parent: Path) -> None:
    """Writes a working plugin package lensd-NAME, whose analyzer answers to NAME."""
    from lensd_server.new_plugin import NewPluginError
    from lensd_server.new_plugin import new_plugin as write

    try:
        folder = write(name, parent)
    except NewPluginError as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        f"wrote {folder}; next:\n  pip install -e '{folder}[test]'\n  pytest {folder}\n  lensd plugins"
    )


@main.command()
@click.option(
    "--out",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Where to write them; what an earlier version wrote there is replaced.",
)
@click.option(
    "--runbook-url",
    default="runbook.md",
    metavar="URL",
    show_default=True,
    help="Where people who get an alert can read the runbook; becomes its runbook_url.",
)
def dashboards(folder: Path, runbook_url: str) -> None:
    """Writes Grafana dashboards, Prometheus rules and alerts, and their runbook.

    Below the folder: grafana/*.json to import, grafana/provisioning to have them imported,
    prometheus/lensd-rules.yml to load, prometheus/prometheus.yml as an example of how to scrape, and
    runbook.md. All are made for this version of the daemon: write them again when it changes.
    """
    from lensd_server.telemetry.monitoring.files import write

    try:
        for path in write(folder, runbook_url):
            click.echo(path)
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from error


def _quiet() -> None:
    """What is drawn or printed says all there is to say; logs would spoil standard output."""
    from lensd_server.telemetry.logging import configure_logging

    configure_logging(level="critical")


def _settings(config: Path | None, flags: dict[str, Any], models: Sequence[str]) -> Settings:
    try:
        return _read(config, flags, models)
    except SettingsError as error:
        raise click.UsageError(str(error)) from error


def _read(config: Path | None, flags: dict[str, Any], models: Sequence[str]) -> Settings:
    named = dict(parse_model_flag(model) for model in models)
    chosen = {name: {"source": source, "preload": True} for name, source in named.items()}
    return load_settings(config, {**flags, "models": chosen} if chosen else flags)
