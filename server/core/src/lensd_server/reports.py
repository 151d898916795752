"""What the ``lensd`` command draws on a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lensd_server.doctor import Finding, Verdict
from lensd_server.plugins import PluginRecord, PluginStatus

_VERDICTS = {
    Verdict.FINE: "[green]ok[/green]    ",
    Verdict.NOTE: "[yellow]note[/yellow]  ",
    Verdict.BROKEN: "[red]broken[/red]",
}
_STATUSES = {
    PluginStatus.ACTIVE: "[green]active[/green]",
    PluginStatus.BROKEN: "[red]broken[/red]",
    PluginStatus.DISABLED: "[yellow]disabled[/yellow]",
    PluginStatus.QUARANTINED: "[red]quarantined[/red]",
}


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """One line a finding, and one more where there is something to do."""
    for finding in findings:
        line = f"{_VERDICTS[finding.verdict]} {escape(finding.what)}: {escape(finding.text)}"
        console.print(line, soft_wrap=True)
        if finding.mend:
            console.print(f"       mend it: {escape(finding.mend)}", soft_wrap=True)


def print_plugins(console: Console, records: Sequence[PluginRecord]) -> None:
    """A table of plugins, then the problems in full."""
    if not records:
        console.print(
            "no plugins are installed; `pip install .` in a checkout of lensd brings the first-party ones"
        )
        return
    table = Table("plugin", "version", "status", "analyzers")
    for record in records:
        analyzers = escape(", ".join(record.analyzers)) or "-"
        table.add_row(escape(record.distribution), record.version, _STATUSES[record.status], analyzers)
    console.print(table)
    for record in records:
        if record.problem:
            console.print(f"{escape(record.distribution)}: {escape(record.problem)}", soft_wrap=True)
