"""Failure attribution through the real client, from structure alone and with the embedded model."""

import pytest

from lensd_client import Client, Graph, InvalidArgument, PartEvent, Record, Table
from tests.e2e.daemon import Daemon

#: What fills the steps between a secret and its use.
_BETWEEN = (
    "The soup is ready.", "It rains outside.", "The lamp is on.", "A cat sleeps here.", "The floor is wet.",
    "Tea is served.", "The clock is slow.", "A door creaks.", "The bread is warm.", "Someone sings.",
    "The mail is late.", "A window is open.", "The fire is low.", "Music plays.", "The stairs are steep.",
    "A dog barks.", "The paint is new.", "Lunch was good.", "The hall is cold.",
)  # fmt: skip


def secret_log() -> dict[str, object]:
    """A number said in step 1 and used twenty steps later, with nothing of it between."""
    said = [("Clerk", "Good morning."), ("Guard", "The secret number is 48213.")]
    said += [("Cook", text) for text in _BETWEEN]
    said += [("Runner", "I was told the secret number. It is 48213.")]
    return {"task": "Say the secret number.", "steps": [{"agent": a, "content": c} for a, c in said]}


def test_a_log_is_attributed_without_a_model(lens: Client) -> None:
    log = secret_log()
    run = lens.analyze("graphtracer", params={"trace": log})
    parts = [event for event in run if isinstance(event, PartEvent) and event.name == "idg"]
    graph, root = run["idg"], run["root_cause"]
    assert isinstance(graph, Graph)
    assert isinstance(root, Record)
    assert run.accepted is not None
    assert run.accepted.model == ""
    assert parts
    assert ("1", "21") in {(edge.source, edge.target) for edge in graph.edges}
    assert "==>" in graph.to_mermaid() or len(root["path"]) == 1


def test_an_unknown_log_is_refused_with_the_place(lens: Client) -> None:
    with pytest.raises(InvalidArgument) as refused:
        lens.analyze("graphtracer", params={"trace": {"lines": []}}).finish()
    assert refused.value.reason == "UNKNOWN_TRACE_FORMAT"
    assert [v.field for v in refused.value.violations] == ["trace"]


@pytest.mark.slow
@pytest.mark.weights
def test_a_secret_used_twenty_steps_later_has_the_largest_flow(embedded: Daemon) -> None:
    with Client(embedded.grpc) as lens:
        params = {"trace": secret_log(), "use_model": True, "flow_steps": [21]}
        run = lens.analyze("graphtracer", model="smollm2-135m", params=params)
        table = run["flow"]
        assert isinstance(table, Table)
        flows = {row["source"]: row["value"] for row in table.rows()}
    assert len(flows) == 21
    largest, second = sorted(flows.values(), reverse=True)[:2]
    assert flows[1] == largest
    assert largest > 2 * second
