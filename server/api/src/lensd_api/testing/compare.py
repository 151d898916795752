"""Compares what two runs of one analysis found, to a tolerance that batching must keep."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from lensd_api.results import Graph, ItemError, Record, Result, Table, Tensor, Text

#: BLAS may choose another kernel for another batch size, so fp32 results agree to this
#: share of the largest magnitude of a result, not bit for bit.
BATCH_TOLERANCE = 1e-5


def differences(
    one: Sequence[Result], other: Sequence[Result], tolerance: float = BATCH_TOLERANCE
) -> list[str]:
    """Where two runs differ, in words; empty when they agree.

    Floats agree when they differ by at most ``tolerance`` times the largest float in their
    result; everything else, integers included, must be equal.
    """
    found: list[str] = []
    mine, theirs = _by_name(one), _by_name(other)
    if mine.keys() != theirs.keys():
        found.append(f"results {sorted(mine)} and {sorted(theirs)}")
    for name in mine.keys() & theirs.keys():
        if len(mine[name]) != len(theirs[name]):
            found.append(f"{name}: {len(mine[name])} parts and {len(theirs[name])}")
            continue
        for a, b in zip(mine[name], theirs[name], strict=True):
            x, y = _plain(a), _plain(b)
            limit = tolerance * max(_magnitude(x), _magnitude(y))
            found += [f"{name}: {text}" for text in _differ(x, y, limit, "")]
    return found


def _by_name(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    grouped: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        grouped.setdefault((result.name, result.item), []).append(result)
    return grouped


def _plain(result: Result) -> Any:
    match result:
        case Table():
            return {"columns": {k: _listed(v) for k, v in result.columns.items()}}
        case Tensor():
            return {"axes": list(result.axes), "data": _listed(result.data)}
        case Graph():
            return {
                "nodes": [[n.id, _listed(n.attributes)] for n in result.nodes],
                "edges": [[e.source, e.target, _listed(e.attributes)] for e in result.edges],
            }
        case Record():
            return _listed(result.values)
        case Text():
            return {"text": result.text, "spans": [[s.start, s.end, s.score, s.label] for s in result.spans]}
        case ItemError():
            return {"error": result.error.reason}


def _listed(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(k): _listed(v) for k, v in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_listed(v) for v in cast("Sequence[Any]", value)]
    return value


def _magnitude(value: Any) -> float:
    """Largest finite float anywhere in ``value``; integers (ids, counts) do not count."""
    if isinstance(value, float):
        return abs(value) if math.isfinite(value) else 0.0
    if isinstance(value, dict):
        return max(map(_magnitude, cast("dict[str, Any]", value).values()), default=0.0)
    if isinstance(value, list):
        return max(map(_magnitude, cast("list[Any]", value)), default=0.0)
    return 0.0


def _differ(a: Any, b: Any, limit: float, path: str) -> list[str]:
    if isinstance(a, float) and isinstance(b, float):
        if a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= limit:
            return []
        return [f"{path}: {a} and {b} (limit {limit:.1e})"]
    if isinstance(a, dict) and isinstance(b, dict):
        left, right = cast("dict[str, Any]", a), cast("dict[str, Any]", b)
        if left.keys() != right.keys():
            return [f"{path}: keys {sorted(left)} and {sorted(right)}"]
        return [d for key in left for d in _differ(left[key], right[key], limit, f"{path}.{key}")]
    if isinstance(a, list) and isinstance(b, list):
        first, second = cast("list[Any]", a), cast("list[Any]", b)
        if len(first) != len(second):
            return [f"{path}: {len(first)} and {len(second)} entries"]
        pairs = enumerate(zip(first, second, strict=True))
        return [d for i, (x, y) in pairs for d in _differ(x, y, limit, f"{path}[{i}]")]
    return [] if a == b else [f"{path}: {a!r} and {b!r}"]
