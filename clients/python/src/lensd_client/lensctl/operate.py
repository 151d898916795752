"""Commands of admin scope: load, unload, see and stop what runs, end a plugin's quarantine, delete artifacts."""

import click
from rich.text import Text

from lensd_client.catalog import Model, RunningAnalysis
from lensd_client.heatmap import visible
from lensd_client.lensctl.app import Failed, Session, json_option
from lensd_client.lensctl.listings import show, size
from lensd_client.lensctl.progress import Bar, waiting


@click.command()
@click.argument("name")
@json_option
@click.pass_obj
def load(session: Session, name: str, as_json: bool) -> None:
    """Makes the configured model NAME resident."""
    model: Model | None = None
    with Bar(session.err) as bar:
        for step in session.client.load(name):
            model = step.model
            if as_json:
                session.print_json(step)
            else:
                bar.update(waiting(step.stage, step.detail) or "loading", 100 * step.fraction, 100, "%")
    if model is not None and not as_json:
        _say(session, model)


@click.command()
@click.argument("name")
@json_option
@click.pass_obj
def unload(session: Session, name: str, as_json: bool) -> None:
    """Waits for NAME's analyses, then frees its memory."""
    model = session.client.unload(name)
    if as_json:
        session.print_json(model)
    else:
        _say(session, model)


@click.command()
@json_option
@click.pass_obj
def ps(session: Session, as_json: bool) -> None:
    """The running analyses, oldest first."""
    found = session.client.analyses()
    if as_json:
        for analysis in found:
            session.print_json(analysis)
        return
    rows = [
        [a.request_id, a.analyzer, a.model, f"{a.age_s:.1f} s", a.pending_rows, _caller(a)] for a in found
    ]
    heads = ["request", "analyzer", "model", "age", "rows", "caller"]
    show(session, heads, rows, nothing="no analyses are running")


@click.command()
@click.argument("request_id", metavar="ID")
@click.pass_obj
def cancel(session: Session, request_id: str) -> None:
    """Stops the running analysis ID. Exit status 1 when there was none."""
    if not session.client.cancel_analysis(request_id):
        session.err.print(Text(f"no analysis {visible(request_id)} is running; `lensctl ps` lists them"))
        raise Failed
    session.out.print(Text(f"cancelled {visible(request_id)}"))


@click.command()
@click.argument("distribution")
@click.pass_obj
def release(session: Session, distribution: str) -> None:
    """Lets the plugin of DISTRIBUTION serve again, once what it was quarantined for is mended or understood.

    `lensctl analyzers` says which plugins are quarantined, and why. One that misbehaves again is quarantined again.
    One that wrote into a model's weights may be released, too, at a risk: the next time it does, whatever runs on
    that model ends and the model is loaded anew, and writes through `.data` or NumPy are not noticed at all.
    One that hangs cannot be released: only a new process ends its thread. Exit status 1 when it was not quarantined.
    """
    name = visible(distribution)
    if not session.client.release_plugin(distribution):
        session.err.print(Text(f"plugin {name} is not quarantined; `lensctl analyzers` says which are"))
        raise Failed
    session.out.print(Text(f"released {name}"))


@click.command()
@click.argument("names", metavar="NAME@VERSION...", nargs=-1, required=True)
@click.pass_obj
def delete(session: Session, names: tuple[str, ...]) -> None:
    """Deletes artifacts for good, one version each. `lensctl artifacts` lists them.

    It stops at the first that cannot be deleted, with exit status 1; those before it are gone.
    """
    for name in names:
        session.client.delete_artifact(name)
        session.out.print(Text(f"deleted {visible(name)}"))


def _caller(analysis: RunningAnalysis) -> str:
    return f"{analysis.identity} ({analysis.peer})" if analysis.identity else analysis.peer


def _say(session: Session, model: Model) -> None:
    where = f": {size(model.resident_bytes)} on {model.device} ({model.dtype})" if model.device else ""
    session.out.print(Text(visible(f"{model.name} is {model.state}{where}")), soft_wrap=True)


COMMANDS = (load, unload, ps, cancel, release, delete)
