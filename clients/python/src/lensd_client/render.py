"""Results drawn for a terminal with rich: what lensctl shows, usable by any program.

Text from a server never reaches the terminal as markup or control sequences.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from lensd_client.columns import Column, Columns
from lensd_client.errors import LensdError
from lensd_client.graph_drawing import draw_path
from lensd_client.heatmap import Heatmap, colour, shorten, visible
from lensd_client.results import AnnotatedText, Graph, Record, Table, Tensor, Value

#: Heat-maps drawn of one tensor.
_MAX_MAPS = 3
_BAR_WIDTH = 11
#: Lists of more equal members than this are counted.
_RUN = 3
#: From so many columns on, headings are broken.
_MANY_COLUMNS = 6


def render(value: Value | LensdError, *, max_rows: int = 20) -> RenderableType:
    """``value`` as something a rich console prints.

    Tables longer than ``max_rows`` show the rows with the largest magnitude in the column
    ``value``, or the first ones where there is no such column, and say so.
    """
    match value:
        case Table():
            return _table(value, max_rows)
        case Tensor():
            return _tensor(value, max_rows)
        case Graph():
            return _graph(value, max_rows)
        case Record():
            return _record(value)
        case AnnotatedText():
            return _text(value)
        case LensdError():
            return error(value)


def heading(value: Value) -> Text:
    """Name, title and item of a result on one line."""
    line = Text(visible(value.name), style="bold")
    if value.title and value.title != value.name:
        line.append(f"  {visible(value.title)}", style="default not bold")
    if value.item:
        line.append(f"  item {visible(value.item)}", style="dim not bold")
    return line


def error(failure: LensdError) -> Text:
    """An error with its code, reason and violations."""
    # A status that gRPC itself made has no reason of its own.
    said = failure.code if failure.reason == failure.code else f"{failure.code} {visible(failure.reason)}"
    text = Text.assemble(("error ", "bold red"), (f"{said}: ", "bold"), _plain(failure))
    for violation in failure.violations:
        text.append(f"\n  {visible(violation.field) or '(request)'}: {visible(violation.description)}")
    if failure.retry_after_s is not None:
        text.append(f"\n  try again in {failure.retry_after_s:g} s")
    return text


def number(value: float) -> str:
    """Four decimals where they say something, else two significant digits."""
    if not np.isfinite(value):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4f}"
    return f"{value:.2g}" if abs(value) < 1 else f"{value:.6g}"


def bar(value: float, largest: float) -> Text:
    """A bar that grows left for negative and right for positive values."""
    if not np.isfinite(value) or not largest:
        return Text()
    half = round(2 * _BAR_WIDTH * min(1.0, abs(value) / largest))
    full, rest = divmod(half, 2)
    style = "#{:02x}{:02x}{:02x}".format(*colour(np.sign(value), 1.0))
    if value < 0:
        return Text(("▐" * rest + "█" * full).rjust(_BAR_WIDTH) + "│" + " " * _BAR_WIDTH, style=style)
    return Text(" " * _BAR_WIDTH + "│" + "█" * full + "▌" * rest, style=style)


def _plain(failure: LensdError) -> str:
    return "\n".join(visible(line) for line in failure.message.splitlines())


def _table(table: Table, max_rows: int) -> RenderableType:
    strength = _strength(table)
    shown = _pick_rows(len(table), strength, max_rows)
    columns = [_column(table, name, shown) for name in table.columns]
    empty = [name for name, column in zip(table.columns, columns, strict=True) if shown and column.is_empty]
    if len(empty) < len(columns):
        columns = [column for column in columns if not (shown and column.is_empty)]
    if strength is not None:
        largest = float(max((strength[i] for i in shown), default=0.0))
        bars = [bar(_as_float(table["value"][i]), largest) for i in shown]
        columns.append(Column(Text(""), bars, is_extra=True))
    parts: list[RenderableType] = [heading(table)]
    if columns:
        parts.append(Columns(columns))
    if empty:
        parts.append(Text(f"nothing in {', '.join(visible(name) for name in empty)}", style="dim"))
    if len(shown) < len(table):
        which = "the first" if strength is None else "the largest"
        parts.append(Text(f"{which} {len(shown)} of {len(table)} rows", style="dim"))
    return Group(*parts)


def _column(table: Table, name: str, shown: Sequence[int]) -> Column:
    values = table.columns[name]
    head = Text(_broken(visible(name)) if len(table.columns) >= _MANY_COLUMNS else visible(name))
    if table.units.get(name):
        head.append(f" [{visible(table.units[name])}]", style="dim not bold")
    return Column(head, [_cell(values[i]) for i in shown], is_text=values.dtype == object)


def _broken(name: str) -> str:
    """A long name over several lines, so that its column can be narrow."""
    return name.replace("_", "_\n") if len(name) > 8 else name


def _strength(table: Table) -> list[float] | None:
    """Magnitudes of the column ``value``, by which rows are ranked; None without one."""
    values = table.columns.get("value")
    if values is None or values.dtype.kind not in "fi":
        return None
    plain = np.nan_to_num(np.ma.filled(values.astype(np.float64), 0.0), posinf=0.0, neginf=0.0)
    return cast("list[float]", np.abs(plain).tolist())


def _pick_rows(n: int, strength: list[float] | None, max_rows: int) -> Sequence[int]:
    if n <= max_rows:
        return range(n)
    if strength is None:
        return range(max_rows)
    return sorted(range(n), key=lambda i: strength[i], reverse=True)[:max_rows]


def _cell(value: object) -> Text:
    if value is None or value is np.ma.masked:
        return Text("")  # an empty text has quotes
    if isinstance(value, float):  # float64 is one
        return Text(number(float(value)))
    return Text(_quoted(value) if isinstance(value, str) else visible(str(value)))


def _quoted(text: str) -> str:
    """In quotes where its ends would not be seen: tokens often begin with a space."""
    return repr(text) if text != text.strip() or not text else visible(text)


def _as_float(value: Any) -> float:
    return float("nan") if value is np.ma.masked else float(value)


def _tensor(tensor: Tensor, max_rows: int) -> RenderableType:
    array = tensor.array
    if not array.ndim:
        unit = f" {visible(tensor.unit)}" if tensor.unit else ""
        return heading(tensor).append(f"  {array.item()}{unit}", style="default not bold")
    sizes = " × ".join(f"{visible(axis)} {n}" for axis, n in zip(tensor.dims, tensor.shape, strict=True))
    head = heading(tensor).append(f"  {sizes}, {tensor.dtype}", style="dim not bold")
    if array.ndim < 2:
        values = array.reshape(-1)
        (axis,) = tensor.dims
        names = list(tensor.labels.get(axis, ())) or [str(i) for i in range(len(values))]
        columns = {axis: np.array(names, dtype=object), "value": values.astype(np.float64)}
        unit = {"value": tensor.unit} if tensor.unit else {}
        # The heading of the inner table would only repeat the name.
        return Group(head, *_group(_table(Table(columns, unit), max_rows))[1:])
    slices = list(np.ndindex(array.shape[:-2]))
    maps = [_map(tensor, at) for at in slices[-_MAX_MAPS:]]
    note = (
        [Text(f"the last {_MAX_MAPS} of {len(slices)} maps", style="dim")] if len(slices) > len(maps) else []
    )
    return Group(head, *maps, *note)


def _group(renderable: RenderableType) -> Sequence[RenderableType]:
    return renderable.renderables if isinstance(renderable, Group) else [renderable]


def _map(tensor: Tensor, at: tuple[int, ...]) -> Heatmap:
    *leading, left, right = tensor.dims
    fixed = ", ".join(
        f"{visible(axis)} {_label(tensor, axis, i)}" for axis, i in zip(leading, at, strict=True)
    )
    return Heatmap(
        tensor.array[at].astype(np.float64),
        axes=(visible(left), visible(right)),
        labels=(tensor.labels.get(left, ()), tensor.labels.get(right, ())),
        unit=tensor.unit,
        title=fixed,
    )


def _label(tensor: Tensor, axis: str, i: int) -> str:
    names = tensor.labels.get(axis)
    return shorten(names[i], 24) if names else str(i)


def _graph(graph: Graph, max_rows: int) -> RenderableType:
    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    names = list(dict.fromkeys(key for edge in graph.edges for key in edge.attributes))
    for name in ("source", "target", *names):
        grid.add_column(Text(visible(name)), overflow="fold")
    for edge in graph.edges[:max_rows]:
        ends = [Text(visible(edge.source)), Text(visible(edge.target))]
        grid.add_row(*ends, *(_cell(edge.attributes.get(name)) for name in names))
    counts = Text(f"{len(graph.nodes)} nodes, {len(graph.edges)} edges", style="dim")
    if len(graph.edges) > max_rows:
        counts.append(f"; the first {max_rows}")
    path = draw_path(graph)
    return Group(heading(graph), grid, counts, *([Text(), path] if path is not None else []))


def _record(record: Record) -> RenderableType:
    grid = RichTable(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in record.items():
        grid.add_row(Text(visible(key)), Text(_plain_value(value)))
    return Group(heading(record), grid)


def _plain_value(value: Any) -> str:
    if isinstance(value, str):
        return _quoted(value)
    return _compact(value)


def _compact(value: Any) -> str:
    """Like JSON, with short numbers and runs of one value counted."""
    match value:
        case float():
            return f"{value:.6g}"
        case Mapping():
            members = cast("Mapping[str, Any]", value).items()
            return "{" + ", ".join(f"{visible(key)}: {_compact(v)}" for key, v in members) + "}"
        case list():
            members = [_compact(member) for member in cast("list[Any]", value)]
            if len(members) > _RUN and len(set(members)) == 1:
                return f"{len(members)} × {members[0]}"
            return f"[{', '.join(members)}]"
        case _:
            return visible(json.dumps(value, ensure_ascii=False))


def _text(text: AnnotatedText) -> RenderableType:
    runs = text.runs()
    largest = max((abs(score) for _, score in runs if np.isfinite(score)), default=0.0)
    drawn = Text()
    for piece, score in runs:
        shown = "".join(c if c in "\n\t" else visible(c) for c in piece)
        style = ""
        if score and np.isfinite(score):
            shade = "#{:02x}{:02x}{:02x}".format(*colour(score, largest))
            style = f"{'white' if abs(score) > 0.75 * largest else 'black'} on {shade}"
        drawn.append(shown, style=style)
    ranked = sorted(text.spans, key=lambda span: -abs(span.score) if np.isfinite(span.score) else 0.0)
    said = ", ".join(
        f"{shorten(text.text[s.start : s.end], 24)!r} {s.score:+.3g}"
        + (f" {visible(s.label)}" if s.label else "")
        for s in ranked[:5]
    )
    return Group(heading(text), drawn, Text(f"largest: {said}" if said else "no spans", style="dim"))
