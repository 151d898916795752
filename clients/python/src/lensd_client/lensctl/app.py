"""The command group: global options, the connection, and how errors end a command.

Exit status: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from lensd_client import render
from lensd_client._base import DEFAULT_TARGET
from lensd_client.client import Client
from lensd_client.errors import LensdError
from lensd_client.jsonlines import dumps

_DEFAULT_ADMIN_TARGET = "127.0.0.1:50052"

_FILE = click.Path(exists=True, dir_okay=False)

_HINTS = {
    "UNKNOWN_ANALYZER": "`lensctl analyzers` lists what is installed",
    "UNKNOWN_MODEL": "`lensctl models` lists what is configured",
    "UNKNOWN_ARTIFACT": "`lensctl artifacts` lists what is stored",
    "UNKNOWN_PLUGIN": "`lensctl analyzers` lists distributions beside their analyzers, and quarantined plugins",
    "PLUGIN_QUARANTINED": "an operator ends a quarantine with `lensctl release DISTRIBUTION`, once its cause is known",
    "INVALID_PARAMS": "`lensctl analyzer NAME` shows the parameters and examples",
    "NO_CREDENTIALS": "give a token (LENSD_TOKEN, LENSD_TOKEN_FILE, --token, --token-file) or a certificate (--cert, --key)",
    "UNKNOWN_TOKEN": "`lensd token list` on the server shows what it knows; `lensd token new` makes another one",
    "UNKNOWN_CERTIFICATE": "the names of certificates and what they may do are in [auth.certificates] of the server",
    "SCOPE_MISSING": "ask the operator for a token with that scope",
    "PERMISSION_DENIED": "operations need the admin listener (LENSD_ADMIN_TARGET or --admin-target) and its rights",
    "DEADLINE_EXCEEDED": "give it longer with --timeout, or leave that out: there is no default deadline",
}


@dataclass
class Session:
    """What every command gets: the client, and where to print."""

    settings: dict[str, Any]
    out: Console = field(default_factory=lambda: Console(highlight=False))
    err: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))
    _client: Client | None = None

    @property
    def client(self) -> Client:
        """Connected when it is first used. Raises UsageError for settings that make no sense."""
        if self._client is None:
            try:
                self._client = Client(**self.settings)
            except (ValueError, OSError) as error:
                raise click.UsageError(str(error)) from error
        return self._client

    def close(self) -> None:
        """Ends the connection; what still runs is cancelled."""
        if self._client is not None:
            self._client.close()

    def print_json(self, value: Any) -> None:
        """One line, at once: whoever reads the other end of a pipe is waiting."""
        click.echo(dumps(value))

    def complain(self, error: LensdError) -> None:
        """The error and what to do about it, for people."""
        self.err.print(render.error(error), soft_wrap=True)
        hint = _HINTS.get(error.reason) or _HINTS.get(error.code)
        if hint:
            self.err.print(Text(f"hint: {hint}", style="dim"), soft_wrap=True)


class Failed(Exception):
    """The command has said what went wrong; only the exit status 1 is left to set."""


class _Group(click.Group):
    """Turns errors into exit statuses, in one place for every command."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            if any(error.option_name in option.opts for option in self.params):
                said = f"{error.option_name} comes before the command: lensctl {error.option_name} … COMMAND"
                raise click.UsageError(said, error.ctx) from error
            raise
        except LensdError as error:
            if isinstance(ctx.obj, Session):
                ctx.obj.complain(error)
            ctx.exit(1)
        except Failed:
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lensd-client", prog_name="lensctl")
@click.option("--target", envvar="LENSD_TARGET", show_envvar=True, metavar="HOST:PORT",
              help=f"Where analyses run; {DEFAULT_TARGET} when not given.")  # fmt: skip
@click.option("--admin-target", envvar="LENSD_ADMIN_TARGET", show_envvar=True, metavar="HOST:PORT",
              help=f"Where operations go; {_DEFAULT_ADMIN_TARGET}, or --target if that is given.")  # fmt: skip
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), metavar="S",
              help="Deadline of each call in seconds; none when not given.")  # fmt: skip
@click.option("--token", envvar="LENSD_TOKEN", show_envvar=True, metavar="TOKEN",
              help="Bearer token. The variable keeps it out of the process list.")  # fmt: skip
@click.option("--token-file", envvar="LENSD_TOKEN_FILE", show_envvar=True, type=_FILE,
              help="File that holds the token.")  # fmt: skip
@click.option("--token-in-clear", is_flag=True,
              help="Send the token without TLS beyond this machine: whoever listens can use it.")  # fmt: skip
@click.option("--ca", envvar="LENSD_CA", show_envvar=True, type=_FILE,
              help="PEM file of the CA; turns TLS on.")  # fmt: skip
@click.option("--cert", envvar="LENSD_CERT", show_envvar=True, type=_FILE,
              help="PEM file of the own certificate.")  # fmt: skip
@click.option("--key", envvar="LENSD_KEY", show_envvar=True, type=_FILE, help="PEM file of its key.")
@click.option("--tls", is_flag=True, help="TLS with the usual roots.")
@click.pass_context
def lensctl(ctx: click.Context, target: str | None, admin_target: str | None, **settings: Any) -> None:
    """Runs analyses on a lensd server, and looks after it."""
    # On the machine of the server the admin listener is known; elsewhere one must be told.
    admin = admin_target or (None if target else _DEFAULT_ADMIN_TARGET)
    session = Session({"target": target or DEFAULT_TARGET, "admin_target": admin, **settings})
    ctx.obj = session
    ctx.call_on_close(session.close)


def json_option(function: Callable[..., None]) -> Callable[..., None]:
    """``--json`` for a command."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")(function)
