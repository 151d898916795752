"""``lensd token``: makes, lists and revokes the tokens callers show."""

from pathlib import Path

import click

from lensd_server.access.caller import Scope
from lensd_server.access.tokens import TokenFileError, issue_token, read_tokens, revoke_tokens
from lensd_server.settings import SettingsError, load_settings


@click.group()
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Settings file, for its auth.token_file.",
)
@click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file of tokens [auth.token_file].",
)
@click.pass_context
def token(ctx: click.Context, config: Path | None, file: Path | None) -> None:
    """Makes, lists and revokes the tokens that callers show.

    A running daemon reads the file again by itself.
    """
    try:
        ctx.obj = file or load_settings(config).auth.token_file
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    if ctx.obj is None:
        raise click.UsageError("no file of tokens: set token_file in [auth] of lensd.toml, or give --file")


@token.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    help="What it is for; may be repeated. Left out, what the tokens of NAME are for already.",
)
@click.pass_obj
def new(file: Path, name: str, scopes: tuple[str, ...]) -> None:
    """Makes a token for the caller NAME and prints it, this once."""
    try:
        made = issue_token(file, name, [Scope(scope) for scope in scopes])
    except TokenFileError as error:
        raise click.ClickException(str(error)) from error
    click.echo(made)
    click.echo(f"only its digest is kept, in {file}", err=True)


@token.command("list")
@click.pass_obj
def list_tokens(file: Path) -> None:
    """Lists identifier, name, scopes and age of every token."""
    try:
        tokens = read_tokens(file)
    except TokenFileError as error:
        raise click.ClickException(str(error)) from error
    for one in tokens:
        click.echo(f"{one.id}  {one.name:<20}  {','.join(one.scopes):<18}  {one.created}")


@token.command()
@click.argument("which", metavar="ID_OR_NAME")
@click.pass_obj
def revoke(file: Path, which: str) -> None:
    """Removes one token by its identifier, or all of a name."""
    try:
        gone = revoke_tokens(file, which)
    except TokenFileError as error:
        raise click.ClickException(str(error)) from error
    for one in gone:
        click.echo(f"revoked {one.id} of {one.name}")
