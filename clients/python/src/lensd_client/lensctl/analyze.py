"""``lensctl analyze``: runs one analysis and draws, prints or writes what it finds."""

import json
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
from rich.text import Text

from lensd_client import render
from lensd_client.errors import LensdError
from lensd_client.events import Completed, Event, Progress, ResultEvent, Warned
from lensd_client.heatmap import visible
from lensd_client.jsonlines import error_object, event_object
from lensd_client.lensctl.app import Failed, Session, json_option
from lensd_client.lensctl.export import Export
from lensd_client.lensctl.progress import Bar, waiting
from lensd_client.requests import Priority
from lensd_client.runs import Run


@click.command()
@click.argument("analyzer")
@click.option("--model", default="", metavar="NAME", help="May be left out if the server has just one.")
@click.option("--params", metavar="JSON|@FILE", help="Parameters as a JSON object, or a file that holds one.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE",
              help="One parameter; the value is JSON, else text. Wins over --params.")  # fmt: skip
@click.option("--tensor", "tensors", multiple=True, metavar="NAME=FILE.npy", help="A dense input.")
@click.option("--priority", type=click.Choice(["interactive", "batch"]), default="interactive")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Writes every result there: tables as CSV, tensors as .npy, the rest as JSON.")  # fmt: skip
@json_option
@click.pass_obj
def analyze(
    session: Session,
    analyzer: str,
    model: str,
    params: str | None,
    assignments: tuple[str, ...],
    tensors: tuple[str, ...],
    priority: Priority,
    out: Path | None,
    as_json: bool,
) -> None:
    """Runs ANALYZER and shows its results while they arrive.

    Ctrl-C cancels it on the server. `lensctl analyzer ANALYZER` shows its parameters, results and
    examples to copy.

    \b
    lensctl analyze dla --set prompt="The capital of France is"
    lensctl analyze dla --params @request.json --out results/
    lensctl analyze dla --set prompt=Hi --json | jq .name
    """
    given = {**parse_params(params), **dict(parse_assignment(text) for text in assignments)}
    arrays = dict(read_tensor(text) for text in tensors)
    export = Export(out) if out else None
    try:
        run = session.client.analyze(analyzer, model, given, tensors=arrays, priority=priority)
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    with run:
        has_failed = _follow(session, run, as_json, export)
    if export is not None and not as_json:
        session.out.print(Text(f"wrote {len(export.written)} files to {export.folder}"), soft_wrap=True)
    if has_failed:
        raise Failed


def _follow(session: Session, run: Run, as_json: bool, export: Export | None) -> bool:
    """Shows every event; whether an item failed."""
    has_failed = False
    with Bar(session.err) as bar:
        try:
            for event in run:
                if isinstance(event, Progress):
                    bar.update(waiting(event.stage, event.detail), event.done, event.total, event.unit)
                else:
                    bar.hide()
                if as_json:
                    line = event_object(event, run.request_id)
                    if line is not None:
                        session.print_json(line)
                else:
                    _draw(session, event)
                if isinstance(event, ResultEvent):
                    has_failed |= isinstance(event.value, LensdError)
                    if export is not None:
                        export.write(event)
        except LensdError as error:
            if as_json:
                session.print_json(error_object(error, run.request_id))
            raise
    return has_failed


def _draw(session: Session, event: Event) -> None:
    match event:
        case ResultEvent(value=LensdError() as failure):
            label = f"{visible(event.name)} of item {visible(event.item)}: " if event.item else ""
            session.err.print(Text.assemble(label, render.error(failure)), soft_wrap=True)
        case ResultEvent():
            session.out.print(render.render(cast("Any", event.value)))
            session.out.print()
        case Warned():
            item = f" (item {visible(event.item)})" if event.item else ""
            said = f"{visible(event.reason)}: {visible(event.message)}{item}"
            session.err.print(Text.assemble(("warning ", "bold yellow"), said), soft_wrap=True)
        case Completed():
            session.out.print(Text(_summary(event), style="dim"), soft_wrap=True)
        case _:
            pass


def _summary(event: Completed) -> str:
    usage = event.usage
    parts = [f"done in {usage.total_s:.3f} s"]
    parts += [
        f"queue {usage.queue_s:.3f}",
        f"forward {usage.forward_s:.3f}",
        f"compute {usage.compute_s:.3f}",
    ]
    if usage.rows:
        parts.append(f"{usage.rows} rows, {usage.tokens} tokens")
    if event.model_revision:
        parts.append(f"model {visible(event.model_revision[:12])}")
    return " · ".join(parts)


def parse_params(text: str | None) -> dict[str, Any]:
    """``--params``: a JSON object, or ``@`` and a file that holds one."""
    if text is None:
        return {}
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise click.BadParameter(_unreadable(text[1:], error), param_hint="--params") from error
    try:
        value: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="--params") from error
    if not isinstance(value, dict):
        raise click.BadParameter("must be a JSON object", param_hint="--params")
    return cast("dict[str, Any]", value)


def parse_assignment(text: str) -> tuple[str, Any]:
    """``--set``: the value is JSON, else text."""
    key, found, value = text.partition("=")
    if not found or not key:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--set")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def read_tensor(text: str) -> tuple[str, np.ndarray[Any, Any]]:
    """``--tensor``: a name and a .npy file, which is never unpickled."""
    name, found, path = text.partition("=")
    if not found or not name or not path:
        raise click.BadParameter(f"{text!r} is not NAME=FILE.npy", param_hint="--tensor")
    try:
        array: Any = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise click.BadParameter(_unreadable(path, error), param_hint="--tensor") from error
    if not isinstance(array, np.ndarray):
        raise click.BadParameter(f"{path} holds several arrays; save one as .npy", param_hint="--tensor")
    return name, cast("np.ndarray[Any, Any]", array)


def _unreadable(path: str, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{path}: {reason}"


COMMANDS = (analyze,)
