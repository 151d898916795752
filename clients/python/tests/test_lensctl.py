"""``lensctl``, as a user and as a script see it."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from click.testing import CliRunner, Result

from lensd_client import Client, Quota, Replica, RunningAnalysis, ServerInfo
from lensd_client.lensctl import main
from lensd_proto.v1 import results_pb2
from tests.interrupts import heeded_by_children

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(fake: Any, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Runs lensctl against the fake server."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LENSD_TARGET", fake.target)

    def run(*arguments: str, **given: Any) -> Result:
        return CliRunner().invoke(main, list(arguments), **given)

    return run


def lines_of(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def full_script(new_script: Any) -> Any:
    """A result of every kind, in several parts where that is possible."""
    script = new_script().accepted().progress(1, 2).warning("HM", "look", item="0")
    script.table("t", part=0, last=False, value=[1.0, None], kind=["a", "b"])
    script.table("t", part=1, value=[float("nan")], kind=["c"])
    axes = [results_pb2.Axis(name="layer"), results_pb2.Axis(name="head")]
    script.tensor("heads", np.array([[1.0, np.nan]], np.float32), axes=axes, chunk=4)
    node, edge = results_pb2.Node(id="a"), results_pb2.Edge(source="a", target="a")
    edge.attributes.update({"w": 0.5})
    script.result("g", graph=results_pb2.Graph(nodes=[node], edges=[edge]))
    script.record("summary", {"target": " Paris", "logit": 17.5, "n": 3})
    span = results_pb2.Span(start=0, end=2, score=0.5, label="x")
    script.result("words", text=results_pb2.AnnotatedText(text="héllo", spans=[span]))
    return script.completed()


def test_json_is_one_object_a_line_in_the_shape_of_the_contract(
    fake: Any, invoke: Invoke, new_script: Any
) -> None:
    fake.play(full_script(new_script))
    result = invoke("analyze", "dla", "--json")
    assert result.exit_code == 0
    lines = lines_of(result)
    assert [line["event"] for line in lines] == [
        "accepted", "progress", "warning", "result", "result", "result", "result", "result", "completed"
    ]  # fmt: skip
    assert {line["request_id"] for line in lines} == {"r1"}
    accepted, progress, warning, table, tensor, graph, record, text, completed = lines
    assert (accepted["model"], accepted["model_state"], accepted["queue_position"]) == ("tiny", "resident", 2)
    assert (progress["stage"], progress["done"], progress["total"], progress["unit"]) == (
        "forward",
        1,
        2,
        "rows",
    )
    assert (warning["reason"], warning["message"], warning["item"]) == ("HM", "look", "0")
    assert (table["name"], table["item"]) == ("t", "")
    assert table["table"] == {
        "columns": {"value": [1.0, None, None], "kind": ["a", "b", "c"]},
        "units": {"value": "logit"},
    }
    assert tensor["tensor"]["data"] == [[1.0, None]]
    assert (tensor["tensor"]["dtype"], tensor["tensor"]["shape"]) == ("float32", [1, 2])
    assert tensor["tensor"]["axes"] == ["layer", "head"]
    assert graph["graph"] == {
        "nodes": [{"id": "a"}],
        "edges": [{"source": "a", "target": "a", "w": 0.5}],
    }
    assert record["record"] == {"target": " Paris", "logit": 17.5, "n": 3}
    assert text["text"] == {"text": "héllo", "spans": [{"start": 0, "end": 2, "score": 0.5, "label": "x"}]}
    assert (completed["model_revision"], completed["usage"]["tokens"]) == ("abc", 14)


def test_without_json_everything_is_drawn_and_warnings_go_to_stderr(
    fake: Any, invoke: Invoke, new_script: Any
) -> None:
    fake.play(full_script(new_script))
    result = invoke("analyze", "dla")
    assert result.exit_code == 0
    for shown in ("' Paris'", "17.5", "layer", "héllo", "1 nodes, 1 edges", "done in 1.000 s", "14 tokens"):
        assert shown in result.stdout
    assert "HM: look (item 0)" in result.stderr
    assert max(len(line) for line in result.stdout.splitlines()[:-1]) <= 80


def test_an_error_ends_with_1_and_says_reason_violations_and_hint(
    fake: Any, invoke: Invoke, new_script: Any, new_status: Any
) -> None:
    status = new_status(
        grpc.StatusCode.INVALID_ARGUMENT, "bad", reason="INVALID_PARAMS", violations={"top_k": "too [big]"}
    )
    for _ in range(2):
        fake.play(new_script().abort(grpc.StatusCode.INVALID_ARGUMENT, "bad", status=status))
    result = invoke("analyze", "dla", "--json")
    assert result.exit_code == 1
    (line,) = lines_of(result)
    assert (line["event"], line["code"], line["reason"]) == ("error", "INVALID_ARGUMENT", "INVALID_PARAMS")
    assert line["message"] == "bad"
    assert line["violations"] == [{"field": "top_k", "description": "too [big]"}]
    result = invoke("analyze", "dla")
    assert (result.exit_code, result.stdout) == (1, "")
    for said in ("INVALID_ARGUMENT INVALID_PARAMS: bad", "top_k: too [big]", "hint: `lensctl analyzer NAME`"):
        assert said in result.stderr


def test_a_failed_item_is_a_result_with_an_error_and_ends_with_1(
    fake: Any, invoke: Invoke, new_script: Any, new_status: Any
) -> None:
    status = new_status(grpc.StatusCode.NOT_FOUND, "no token", reason="NO_TOKEN")
    for _ in range(2):
        script = new_script().accepted().record("s", {"n": 1}, item="0").result("s", "1", error=status)
        fake.play(script.completed())
    result = invoke("analyze", "dla", "--json")
    assert result.exit_code == 1
    failed = lines_of(result)[2]
    assert (failed["event"], failed["name"], failed["item"]) == ("result", "s", "1")
    assert (failed["error"]["code"], failed["error"]["reason"]) == ("NOT_FOUND", "NO_TOKEN")
    result = invoke("analyze", "dla")
    assert result.exit_code == 1
    assert "s of item 1: error NOT_FOUND NO_TOKEN: no token" in result.stderr


def test_a_truncated_stream_ends_with_1(fake: Any, invoke: Invoke, new_script: Any) -> None:
    fake.play(new_script().accepted())
    result = invoke("analyze", "dla", "--json")
    assert result.exit_code == 1
    assert [line["event"] for line in lines_of(result)] == ["accepted", "error"]
    assert lines_of(result)[1]["reason"] == "TRUNCATED_STREAM"


def test_parameters_come_from_file_json_and_assignments(
    fake: Any, invoke: Invoke, new_script: Any, tmp_path: Path
) -> None:
    fake.play(new_script().accepted().completed())
    (tmp_path / "params.json").write_text('{"prompt": "x", "unit": "block"}')
    np.save(tmp_path / "d.npy", np.ones(3, np.float32))
    result = invoke(
        "analyze", "dla", "--model", "tiny", "--params", f"@{tmp_path}/params.json", "--set", "unit=head",
        "--set", "top_k=5", "--set", "positions=[0,-1]", "--set", 'target=" Paris"', "--set", "contrast=a=b",
        "--tensor", f"direction={tmp_path}/d.npy", "--priority", "batch",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (request,) = fake.requests
    fields = request.params.fields
    assert fields["prompt"].string_value == "x"
    assert fields["unit"].string_value == "head"
    assert fields["top_k"].number_value == 5
    assert [v.number_value for v in fields["positions"].list_value.values] == [0, -1]
    assert fields["target"].string_value == " Paris"
    assert fields["contrast"].string_value == "a=b"
    assert list(request.tensors["direction"].shape) == [3]
    assert request.model == "tiny"


@pytest.mark.parametrize(
    "arguments",
    [
        ["analyze"],
        ["analyze", "dla", "--params", "{"],
        ["analyze", "dla", "--params", "[1]"],
        ["analyze", "dla", "--params", "@/no/such/file"],
        ["analyze", "dla", "--set", "prompt"],
        ["analyze", "dla", "--set", "seed=1152921504606846976"],
        ["analyze", "dla", "--tensor", "d=/no/such.npy"],
        ["analyze", "dla", "--tensor", "d"],
        ["analyze", "dla", "--priority", "urgent"],
        ["--timeout", "0", "models"],
        ["--target", "example.org:1", "--token", "s3cret", "models"],
        ["no-such-command"],
    ],
)
def test_wrong_usage_ends_with_2_and_never_shows_the_token(invoke: Invoke, arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert "s3cret" not in result.output


def test_pickles_are_refused(invoke: Invoke, tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert invoke("analyze", "dla", "--tensor", f"p={tmp_path}/p.npy").exit_code == 2


def test_out_writes_every_result_inside_the_folder(
    fake: Any, invoke: Invoke, new_script: Any, new_status: Any, tmp_path: Path
) -> None:
    script = new_script().accepted().table("t", value=[1.5, None], kind=["a,b", "c"])
    script.tensor("heads", np.ones((2, 2), np.float32)).record("../../etc/passwd", {"n": 1})
    script.record("s", {"n": 1}, item="a/b").record("s", {"n": 2}, item="a b")
    script.result("s", "bad", error=new_status(grpc.StatusCode.INTERNAL, "boom"))
    fake.play(script.completed())
    out = tmp_path / "deep" / "out"
    result = invoke("analyze", "dla", "--out", str(out))
    assert result.exit_code == 1
    assert sorted(p.name for p in out.iterdir()) == [
        "_.._etc_passwd.json", "heads.npy", "s.a_b-2.json", "s.a_b.json", "s.bad.error.json", "t.csv"
    ]  # fmt: skip
    assert (out / "t.csv").read_text() == 'value,kind\n1.5,"a,b"\n,c\n'
    np.testing.assert_array_equal(np.load(out / "heads.npy"), np.ones((2, 2)))
    assert json.loads((out / "s.a_b-2.json").read_text()) == {"n": 2}


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["models"], ["tiny", "resident", "cpu float32", "1.23 kB", "dir:/tiny"]),
        (["analyzers"], ["dla", "lensd-dla 0.1.0", "Attributes logits."]),
        (
            ["analyzer", "dla"],
            ["prompt", "required", '"head" | "block"', "integer", "no heads", "Sums."],
        ),
        (["artifacts"], ["probe@3", "2.05 kB", "2023-11-14"]),
        (["info"], ["torch", "2.13", "no limit", "2 rows, 20 tokens"]),
        (["info"], ["4096 rows waiting, 1000 tokens and 4.29 GB", "75 % of these, 512 streams"]),
        (["info"], ["broken off after 30 s", "4 analyses at once, 300 rows a minute"]),
        (["health"], ["server", "SERVING", "SERVICE_UNKNOWN"]),
        (["ps"], ["r9", "1.5 s"]),
        (["cancel", "r9"], ["cancelled r9"]),
        (["release", "lensd-bad"], ["released lensd-bad"]),
        (["delete", "probe@2", "probe@3"], ["deleted probe@2\ndeleted probe@3\n"]),
        (["load", "tiny"], ["tiny is resident: 1.23 kB on cpu (float32)"]),
    ],
)
def test_every_command_shows_what_the_server_says(
    invoke: Invoke, arguments: list[str], shown: list[str]
) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    for text in shown:
        assert text in result.stdout


def test_deleting_stops_at_the_first_that_is_not_there(invoke: Invoke) -> None:
    result = invoke("delete", "probe@2", "absent@1", "probe@3")
    assert result.exit_code == 1
    assert result.stdout == "deleted probe@2\n"
    assert "no artifact absent@1" in result.stderr


@pytest.mark.parametrize("command", ["models", "analyzers", "artifacts", "info", "health", "ps"])
def test_listings_are_json_for_machines(invoke: Invoke, command: str) -> None:
    result = invoke(command, "--json")
    assert result.exit_code == 0
    assert lines_of(result)


def test_of_several_replicas_it_shows_where_they_are_and_why_one_is_not(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Client.models
    replicas = (
        Replica("resident", "cuda:1", 1, "", ""),
        Replica("cold", "", 0, "no room", ""),
        Replica("resident", "cuda:0", 0, "", ""),
    )
    monkeypatch.setattr(
        Client, "models", lambda client: [replace(m, replicas=replicas) for m in found(client)]
    )
    _, heads, _, row = invoke("models").stdout.splitlines()[:4]
    assert "replicas" in heads
    for text in ("resident", "2 of 3", "cuda:0 cuda:1", "no room"):
        assert text in row


def test_a_caller_without_a_quota_is_told_so(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Client.server_info

    def without(client: Client) -> ServerInfo:
        info = found(client)
        return replace(info, limits=replace(info.limits, quota=Quota(None, None, None, None)))

    monkeypatch.setattr(Client, "server_info", without)
    (shown,) = [line for line in invoke("info").stdout.splitlines() if "your quota" in line]
    assert shown.split() == ["your", "quota", "none"]
    (line,) = lines_of(invoke("info", "--json"))
    assert line["info"]["limits"]["quota"]["max_analyses"] is None


def test_the_example_of_an_analyzer_can_be_pasted_into_a_shell(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On one line, though the terminal is narrow.
    monkeypatch.setenv("COLUMNS", "30")
    shown = invoke("analyzer", "dla").stdout
    assert """lensctl analyze dla --params '{"prompt": "It'\\''s"}'""" in shown


def test_request_ids_can_be_copied_from_ps(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    request_id = "0123456789abcdef0123456789abcdef"
    running = RunningAnalysis(
        request_id, "graphtracer-faults", "smollm2-135m", 1.5, 64, "ipv4:127.0.0.1:51234"
    )
    monkeypatch.setattr(Client, "analyses", lambda self: [running])
    result = invoke("ps")
    assert request_id in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80


def test_nothing_to_list_is_said_in_words(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "analyses", lambda self: [])
    monkeypatch.setattr(Client, "artifacts", lambda self: [])
    assert "no analyses are running" in invoke("ps").stderr
    assert "nothing is stored" in invoke("artifacts").stderr
    assert invoke("ps", "--json").stdout == ""


def test_a_global_option_after_the_command_is_told_where_it_goes(invoke: Invoke) -> None:
    result = invoke("models", "--timeout", "3")
    assert result.exit_code == 2
    assert "--timeout comes before the command" in result.stderr
    assert "No such option" in invoke("models", "--nope").stderr


def test_broken_plugins_are_mentioned(invoke: Invoke) -> None:
    assert "plugin lensd-bad is broken: no import" in invoke("analyzers").stderr


def test_a_server_that_does_not_serve_ends_with_1(fake: Any, invoke: Invoke) -> None:
    fake.statuses[""] = 2
    result = invoke("health")
    assert result.exit_code == 1
    assert "NOT_SERVING" in result.stdout


def test_releasing_what_is_not_quarantined_ends_with_1_and_the_help_says_what_is_at_risk(
    invoke: Invoke,
) -> None:
    result = invoke("release", "lensd-dla")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "lensd-dla is not quarantined" in result.stderr
    said = " ".join(invoke("release", "--help").stdout.split())
    assert "whatever runs on that model ends" in said
    assert "only a new process ends its thread" in said


def test_cancelling_what_does_not_run_ends_with_1(invoke: Invoke) -> None:
    assert invoke("cancel", "nope").exit_code == 1


def test_refused_operations_say_how_to_reach_the_admin_listener(invoke: Invoke) -> None:
    result = invoke("unload", "tiny")
    assert result.exit_code == 1
    assert "--admin-target" in result.stderr


def test_no_server_ends_with_1_and_says_what_to_do() -> None:
    result = CliRunner().invoke(main, ["--target", "127.0.0.1:1", "models"])
    assert result.exit_code == 1
    assert "127.0.0.1:1" in result.stderr
    assert "lensd serve" in result.stderr


def test_ctrl_c_cancels_on_the_server_and_ends_with_130(fake: Any, new_script: Any) -> None:
    fake.play(new_script().accepted().hang())
    command = [sys.executable, "-c", "from lensd_client.lensctl import main; main()", "--target", fake.target]
    with heeded_by_children():
        process = subprocess.Popen(
            [*command, "analyze", "dla", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    with process:
        assert process.stdout is not None
        assert '"accepted"' in process.stdout.readline()
        process.send_signal(2)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert fake.ended.wait(10)


def test_lines_arrive_while_the_analysis_runs(fake: Any, new_script: Any) -> None:
    fake.play(new_script().accepted().record("s", {"n": 1}).hang())
    process = subprocess.Popen(
        [sys.executable, "-c", "from lensd_client.lensctl import main; main()", "--target", fake.target,
         "analyze", "dla", "--json"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert [json.loads(process.stdout.readline())["event"] for _ in range(2)] == ["accepted", "result"]
        process.kill()
