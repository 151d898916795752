"""How a benchmark is shown: figures, targets beside them, and by how much one is missed."""

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from tests.bench.timing import Latency, Throughput

#: End to end with one client, seconds over those of a bare forward pass.
MAX_LATENCY_RATIO = 1.25
#: Sixteen clients, analyses a second over bare forward passes a second, one after another.
MIN_THROUGHPUT_RATIO = 2.5
#: Peak resident bytes over those of the same model doing bare forward passes.
MAX_MEMORY_RATIO = 1.05

_MIB = 1024 * 1024
_NAMES = {"bare": "transformers, bare forward", "engine": "dla in the engine", "grpc": "dla over gRPC"}


@dataclass(frozen=True, slots=True)
class Report:
    """Everything one run measured. ``peaks`` are bytes, ``None`` where the system does not tell."""

    machine: str
    tokens: int
    latency: Mapping[str, Latency]
    throughput: Mapping[int, Mapping[str, Throughput]]
    peaks: Mapping[str, int | None]
    daemon_peak: int | None
    seconds: float


def print_report(report: Report) -> None:
    """Prints tables, then the targets."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 110  # a file or a pipe
    console.print(f"SmolLM2-135M, prompts of {report.tokens} tokens, unit=head; {report.machine}")
    console.print(_latency_table(report.latency))
    console.print(_throughput_table(report.throughput))
    console.print(_memory_table(report))
    console.print("\nTargets")
    for line in _targets(report):
        console.print(f"  {line}")
    console.print(f"\n{report.seconds:.0f} s; medians; every prompt differs, so nothing is cached")


def _latency_table(latency: Mapping[str, Latency]) -> Table:
    table = Table("one at a time", "ms", "x bare (median of pairs)", title="Latency", title_justify="left")
    for name, found in latency.items():
        table.add_row(_NAMES[name], f"{found.median_s * 1e3:.1f}", f"{found.ratio:.3f}")
    return table


def _throughput_table(throughput: Mapping[int, Mapping[str, Throughput]]) -> Table:
    table = Table("at once", "what", "per s", "x bare, one by one", title="Throughput", title_justify="left")
    for clients, found in throughput.items():
        for name, rate in found.items():
            at_once = "1" if name == "bare" else str(clients)
            table.add_row(at_once, _NAMES[name], f"{rate.median_per_s:.1f}", f"{rate.ratio:.2f}")
        table.add_section()
    return table


def _memory_table(report: Report) -> Table:
    table = Table("peak memory", "MiB", "x bare", title="Memory", title_justify="left")
    for name, label in (("one", "one prompt"), ("many", "sixteen prompts")):
        bare, engine = report.peaks[f"bare_{name}"], report.peaks[f"engine_{name}"]
        if bare is None or engine is None:
            continue
        table.add_row(f"model and bare forward, {label}", f"{bare / _MIB:.0f}", "1")
        table.add_row(f"model and dla in the engine, {label}", f"{engine / _MIB:.0f}", f"{engine / bare:.3f}")
    if report.daemon_peak is not None:
        table.add_row("daemon, all of the above", f"{report.daemon_peak / _MIB:.0f}", "")
    return table


def _targets(report: Report) -> list[str]:
    most = max(report.throughput)
    lines = [
        _verdict("gRPC, one client: time", report.latency["grpc"].ratio, MAX_LATENCY_RATIO, at_most=True),
        _verdict(
            f"gRPC, {most} clients: throughput",
            report.throughput[most]["grpc"].ratio,
            MIN_THROUGHPUT_RATIO,
            at_most=False,
        ),
    ]
    for name, label in (("one", "one prompt"), ("many", "sixteen prompts")):
        bare, engine = report.peaks[f"bare_{name}"], report.peaks[f"engine_{name}"]
        if bare is not None and engine is not None:
            lines.append(_verdict(f"engine, {label}: memory", engine / bare, MAX_MEMORY_RATIO, at_most=True))
    return lines


def _verdict(what: str, value: float, target: float, *, at_most: bool) -> str:
    met = value <= target if at_most else value >= target
    sign = "<=" if at_most else ">="
    verdict = "[green]met[/]" if met else f"[red]missed by {abs(value / target - 1):.1%}[/]"
    return f"{what} {value:.3f} x bare (target {sign} {target}): {verdict}"
