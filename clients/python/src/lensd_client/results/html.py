"""The little HTML that notebooks get. All text from a server goes through :func:`escape`."""

from collections.abc import Iterable, Sequence
from html import escape as _escape

#: Rows, nodes and the like shown before the rest is only counted.
SHOWN = 50


def escape(value: object) -> str:
    """``value`` as text that cannot be mistaken for markup, quotes included."""
    return _escape(str(value), quote=True)


def number(value: object) -> str:
    """A cell's text: numbers short, nothing for a missing value, everything escaped."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return escape(value)


def table(
    heads: Iterable[str], rows: Iterable[Sequence[object]], *, caption: str = "", note: str = ""
) -> str:
    """A table whose cells are escaped here."""
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
    top = f"<caption>{escape(caption)}</caption>" if caption else ""
    foot = f"<p><small>{escape(note)}</small></p>" if note else ""
    return f"<table>{top}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{foot}"


def _cell(value: object) -> str:
    right = isinstance(value, int | float) and not isinstance(value, bool)
    style = ' style="text-align:right"' if right else ""
    return f"<td{style}>{number(value)}</td>"
