"""Commands that show what a server has: models, analyzers, artifacts, versions, health."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import click
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lensd_client.catalog import Analyzer, Limits, Model, Quota
from lensd_client.errors import LensdError
from lensd_client.heatmap import visible
from lensd_client.lensctl.app import Failed, Session, json_option

_STATE_STYLES = {
    "resident": "green",
    "loading": "yellow",
    "draining": "yellow",
    "failed": "red",
    "active": "green",
    "broken": "red",
    "quarantined": "red",
    "SERVING": "green",
    "NOT_SERVING": "red",
}
_SERVICES = ("Analysis", "Analyzer", "Model", "Artifact", "Server")


@click.command()
@json_option
@click.pass_obj
def models(session: Session, as_json: bool) -> None:
    """The configured models and where they are in their life."""
    found = session.client.models()
    if as_json:
        _print_all(session, found)
        return
    several = any(len(m.replicas) > 1 for m in found)
    rows = [
        [
            m.name,
            m.state,
            *([_replicas(m)] if several else []),
            f"{_devices(m)} {m.dtype}".strip(),
            size(m.resident_bytes),
            f"{m.leases} (+{m.waiting} waiting)" if m.waiting else m.leases,
            m.problem or m.detail or _lacking(m) or m.source,
        ]
        for m in found
    ]
    heads = ["model", "state", *(["replicas"] if several else []), "on", "memory", "in use", "source"]
    session.out.print(grid(heads, rows))


def _replicas(model: Model) -> str:
    there = sum(replica.state == "resident" for replica in model.replicas)
    return f"{there} of {len(model.replicas)}"


def _devices(model: Model) -> str:
    """Where its resident replicas are."""
    there = {replica.device for replica in model.replicas if replica.state == "resident"}
    return " ".join(sorted(there)) or model.device


def _lacking(model: Model) -> str:
    """Why replicas are not there that are configured."""
    return "; ".join(sorted({replica.problem for replica in model.replicas if replica.problem}))


@click.command()
@json_option
@click.pass_obj
def analyzers(session: Session, as_json: bool) -> None:
    """The installed analyzers, and plugins that do not work."""
    found = session.client.analyzers()
    if as_json:
        _print_all(session, found)
        return
    rows = [[a.name, f"{a.distribution} {a.version}", a.summary] for a in found]
    session.out.print(grid(["analyzer", "from", "what it does"], rows))
    for plugin in session.client.plugins():
        if plugin.status not in ("active", "disabled"):
            said = f"plugin {visible(plugin.distribution)} is {plugin.status}: {visible(plugin.problem)}"
            session.err.print(Text(said, style="yellow"), soft_wrap=True)


@click.command()
@click.argument("name")
@json_option
@click.pass_obj
def analyzer(session: Session, name: str, as_json: bool) -> None:
    """One analyzer: parameters, results, examples and which models can serve it."""
    found = session.client.analyzer(name)
    if as_json:
        session.print_json(found)
        return
    for part in _describe(found):
        # What is to be copied stays on one line, however narrow the terminal.
        session.out.print(part, soft_wrap=isinstance(part, Text) and part.no_wrap)


@click.command()
@json_option
@click.pass_obj
def artifacts(session: Session, as_json: bool) -> None:
    """What analyzers have stored."""
    found = session.client.artifacts()
    if as_json:
        _print_all(session, found)
        return
    rows = [
        [f"{a.name}@{a.version}", a.analyzer, a.model, size(a.size_bytes), f"{a.created:%Y-%m-%d %H:%M} UTC"]
        for a in found
    ]
    show(session, ["artifact", "analyzer", "model", "size", "stored"], rows, nothing="nothing is stored")


@click.command()
@json_option
@click.pass_obj
def info(session: Session, as_json: bool) -> None:
    """Versions, limits and load of the server."""
    found, load = session.client.server_info(), session.client.load_status()
    if as_json:
        session.print_json({"info": found, "load": load})
        return
    rows = [
        ["lensd-server", found.version],
        ["lensd-api", found.api_version],
        *([name, version] for name, version in sorted(found.libraries.items())),
        ["started", f"{found.started:%Y-%m-%d %H:%M:%S} UTC"],
        ["devices", ", ".join(found.devices)],
        ["features", ", ".join(found.features)],
        *_limits(found.limits),
        ["running now", f"{load.analyses}" + (" (draining)" if load.draining else "")],
        *([f"waiting for {m.model}", f"{m.queued_rows} rows, {m.queued_tokens} tokens"] for m in load.models),
    ]
    session.out.print(grid(["", ""], rows, show_header=False))


def _limits(limits: Limits) -> Iterator[list[str]]:
    yield ["largest request", size(limits.max_request_bytes)]
    together = size(limits.max_artifacts_bytes)
    yield ["largest artifact", f"{size(limits.max_artifact_bytes)}, all together {together}"]
    yield ["analyses at once", f"{limits.max_analyses}, {limits.max_analyses_per_stream} on one stream"]
    yield ["longest analysis", f"{limits.max_timeout_s:g} s" if limits.max_timeout_s else "no limit"]
    yield [
        "for each model",
        f"{limits.max_queued_rows} rows waiting, {limits.max_admitted_tokens} tokens and "
        f"{size(limits.max_admitted_bytes)} let in",
    ]
    share = f"{100 * limits.caller_share:g} % of these"
    yield ["for one caller", f"{share}, {limits.max_streams_per_caller} streams"]
    yield ["unread streams", f"broken off after {limits.send_timeout_s:g} s"]
    yield ["your quota", _quota(limits.quota)]


def _quota(quota: Quota) -> str:
    bounds = [
        (quota.max_analyses, f"{quota.max_analyses} analyses at once"),
        (quota.rows_per_minute, f"{quota.rows_per_minute} rows a minute"),
        (quota.tokens_per_minute, f"{quota.tokens_per_minute} tokens a minute"),
        (quota.bytes_per_minute, f"{size(quota.bytes_per_minute or 0)} a minute"),
    ]
    return ", ".join(text for bound, text in bounds if bound is not None) or "none"


@click.command()
@json_option
@click.pass_obj
def health(session: Session, as_json: bool) -> None:
    """Health of the server, its services and its models. Exit status 1 unless it serves."""
    names = ["", *(f"lensd.v1.{service}Service" for service in _SERVICES)]
    names += [f"lensd.v1.Model/{model.name}" for model in session.client.models()]
    statuses = {name: _health(session, name) for name in names}
    if as_json:
        for name, status in statuses.items():
            session.print_json({"service": name, "status": status})
    else:
        session.out.print(
            grid(["service", "health"], [[name or "server", status] for name, status in statuses.items()])
        )
    if statuses[""] != "SERVING":
        raise Failed


def _health(session: Session, service: str) -> str:
    try:
        return session.client.health(service)
    except LensdError as error:
        if error.code != "NOT_FOUND":
            raise
        return "SERVICE_UNKNOWN"


def show(session: Session, heads: list[str], rows: list[list[Any]], *, nothing: str) -> None:
    """A table whose first column can be copied whole, or ``nothing`` in words, on stderr."""
    if rows:
        session.out.print(grid(heads, rows, whole=1))
    else:
        session.err.print(Text(nothing, style="dim"))


def grid(
    heads: list[str], rows: Iterable[Iterable[Any]], *, show_header: bool = True, whole: int = 0
) -> Table:
    """A table of plain values, states in colour; the first ``whole`` columns are not broken."""
    table = Table(box=box.SIMPLE_HEAD if show_header else None, show_header=show_header, pad_edge=False)
    for index, head in enumerate(heads):
        table.add_column(head, overflow="fold", no_wrap=index < whole)
    for row in rows:
        table.add_row(*(Text(visible(str(v)), style=_STATE_STYLES.get(str(v), "")) for v in row))
    return table


def size(n_bytes: int) -> str:
    """Bytes for people; nothing for none."""
    if not n_bytes:
        return ""
    amount = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} TB"


def _describe(found: Analyzer) -> Iterator[RenderableType]:
    yield Text(f"{visible(found.name)}  ", style="bold").append(
        f"{visible(found.distribution)} {visible(found.version)}", style="dim not bold"
    )
    yield Text(visible(found.summary))
    yield Text("\nparameters", style="bold")
    yield _parameters(found.params_schema)
    if found.results:
        rows = [[r.name, r.kind, r.description] for r in found.results]
        yield Text("\nresults", style="bold")
        yield grid(["name", "kind", "what it holds"], rows)
    if found.examples:
        yield Text("\nexamples", style="bold")
    for example in found.examples:
        params = json.dumps(example.params, ensure_ascii=False)
        call = f"lensctl analyze {found.name} --params {_quote(params)}"
        yield Text(f"  {visible(example.name)}: {visible(example.shows)}")
        yield Text(f"    {visible(call)}", style="cyan", no_wrap=True)
    if found.needs_model:
        needs = f"a model with {', '.join(found.features)}" if found.features else "a model"
        yield Text(f"\nneeds {visible(needs)}")
    for model in found.compatibility:
        said = "can serve it" if model.satisfied else f"cannot: {'; '.join(model.reasons)}"
        yield Text(f"  {visible(model.model)} {visible(said)}")


def _parameters(schema: Mapping[str, Any]) -> Table:
    required = set(cast("list[str]", schema.get("required", [])))
    properties = cast("dict[str, dict[str, Any]]", schema.get("properties", {}))
    defs = cast("dict[str, Any]", schema.get("$defs", {}))
    # What must be given comes first; the wire keeps no order of its own.
    ordered = sorted(properties.items(), key=lambda entry: (entry[0] not in required, entry[0]))
    rows = [
        [
            name,
            _type(of, defs),
            "required" if name in required else _default(of.get("default")),
            of.get("description", ""),
        ]
        for name, of in ordered
    ]
    return grid(["name", "type", "default", "meaning"], rows)


def _type(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """The type in a word or two; the schema itself (``--json``) has the rest."""
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    if name:
        found = cast("dict[str, Any]", defs.get(name, {}))
        return _type(found, defs) if "enum" in found else name
    if "enum" in schema:
        return " | ".join(json.dumps(v) for v in schema["enum"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "anyOf" in schema:
        # That it may be null is said by its having no default.
        kinds = [_type(s, defs) for s in schema["anyOf"] if s.get("type") != "null"]
        return " | ".join(dict.fromkeys(kinds)) or "null"
    if schema.get("type") == "array":
        return f"{_type(schema.get('items', {}), defs)}[]"
    return str(schema.get("type", "any"))


def _default(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _print_all(session: Session, values: Iterable[Any]) -> None:
    for value in values:
        session.print_json(value)


COMMANDS = (models, analyzers, analyzer, artifacts, info, health)
