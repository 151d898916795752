"""Runs, against a server that keeps to the rules of the stream and one that does not."""

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest

import lensd_client as L
from lensd_proto.v1 import results_pb2


def test_a_run_streams_typed_events_in_order(fake: Any, lens: L.Client, new_script: Any) -> None:
    fake.play(
        new_script().accepted().progress(1, 2).warning("HM", "look").record("summary", {"n": 2}).completed()
    )
    run = lens.analyze("dla", "tiny", {"prompt": "x"})
    kinds = [type(event) for event in run]
    assert kinds == [L.Accepted, L.Progress, L.Warned, L.ResultEvent, L.Completed]
    assert run.request_id == "r1"
    assert run.accepted is not None
    assert run.accepted.model_state == "resident"
    assert run.progress == L.Progress("forward", 1, 2, "rows")
    assert [w.reason for w in run.warnings] == ["HM"]
    assert run.completed is not None
    assert run.completed.usage.tokens == 14
    assert run.is_finished


def test_asking_for_a_result_drains_the_stream(fake: Any, lens: L.Client, new_script: Any) -> None:
    fake.play(new_script().accepted().record("summary", {"n": 2, "x": 0.5}).completed())
    run = lens.analyze("dla")
    assert run["summary"] == {"n": 2, "x": 0.5}
    assert isinstance(run["summary"]["n"], int)
    assert [value.name for value in run.results()] == ["summary"]


def test_parts_of_a_table_are_joined_with_their_missing_values(
    fake: Any, lens: L.Client, new_script: Any
) -> None:
    script = new_script().accepted()
    script.table("t", part=0, last=False, value=[1.0, None], kind=["a", None], n=[1, 2])
    script.table("t", part=1, last=True, value=[3.0], kind=["b"], n=[None])
    fake.play(script.completed())
    run = lens.analyze("dla")
    events = list(run)
    assert [e.part for e in events if isinstance(e, L.PartEvent)] == [0, 1]
    assert sum(isinstance(e, L.ResultEvent) for e in events) == 1
    table = run["t"]
    assert len(table) == 3
    assert table.to_dict() == {"value": [1.0, None, 3.0], "kind": ["a", None, "b"], "n": [1, 2, None]}
    assert table.units == {"value": "logit"}


def test_parts_of_a_graph_are_joined(fake: Any, lens: L.Client, new_script: Any) -> None:
    script = new_script().accepted()
    nodes = [results_pb2.Node(id=name) for name in "ab"]
    script.result("g", part=0, last=False, graph=results_pb2.Graph(nodes=nodes[:1]))
    edge = results_pb2.Edge(source="a", target="b")
    script.result("g", part=1, graph=results_pb2.Graph(nodes=nodes[1:], edges=[edge]))
    fake.play(script.completed())
    graph = lens.analyze("dla")["g"]
    assert [node.id for node in graph.nodes] == ["a", "b"]
    assert [(e.source, e.target) for e in graph.edges] == [("a", "b")]


def test_chunks_of_a_tensor_are_reassembled(fake: Any, lens: L.Client, new_script: Any) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    axes = [results_pb2.Axis(name=name) for name in ("position", "layer", "head")]
    fake.play(new_script().accepted().tensor("heads", array, chunk=20, axes=axes).completed())
    tensor = lens.analyze("dla")["heads"]
    np.testing.assert_array_equal(tensor.to_numpy(), array)
    assert tensor.axes == ("position", "layer", "head")


def test_a_stream_without_completed_raises(fake: Any, lens: L.Client, new_script: Any) -> None:
    fake.play(new_script().accepted().record("summary", {"n": 2}))
    run = lens.analyze("dla")
    with pytest.raises(L.TruncatedStream, match="incomplete"):
        run.finish()
    with pytest.raises(L.TruncatedStream):
        run["summary"]


def test_an_empty_stream_raises(fake: Any, lens: L.Client, new_script: Any) -> None:
    fake.play(new_script())
    with pytest.raises(L.TruncatedStream):
        lens.analyze("dla").finish()


def test_a_changed_byte_raises(fake: Any, lens: L.Client, new_script: Any) -> None:
    script = new_script().accepted().tensor("h", np.ones(3, np.float32))
    script.steps[1].result.tensor.data = np.zeros(3, np.float32).tobytes()
    fake.play(script.completed())
    with pytest.raises(L.ChecksumMismatch, match="'h'"):
        lens.analyze("dla").finish()


def test_a_missing_chunk_raises(fake: Any, lens: L.Client, new_script: Any) -> None:
    script = new_script().accepted().tensor("h", np.ones(6, np.float32), chunk=8)
    del script.steps[2]
    for sequence, step in enumerate(script.steps):
        step.sequence = sequence
    fake.play(script.completed())
    with pytest.raises(L.MissingPart, match="begins at 16, 8 was due"):
        lens.analyze("dla").finish()


def test_a_tensor_that_never_ends_raises(fake: Any, lens: L.Client, new_script: Any) -> None:
    script = new_script().accepted().tensor("h", np.ones(6, np.float32), chunk=8)
    del script.steps[3:]
    fake.play(script.completed())
    with pytest.raises(L.MissingPart, match="end of 'h' is missing"):
        lens.analyze("dla").finish()


def test_a_missing_part_raises(fake: Any, lens: L.Client, new_script: Any) -> None:
    script = new_script().accepted().table("t", part=0, last=False, n=[1]).table("t", part=2, n=[2])
    fake.play(script.completed())
    with pytest.raises(L.MissingPart, match="part 2 of 't' came where 1 was due"):
        lens.analyze("dla").finish()


def test_a_gap_in_the_sequence_raises(fake: Any, lens: L.Client, new_script: Any) -> None:
    script = new_script().accepted().progress(1, 2).progress(2, 2).completed()
    del script.steps[1]
    fake.play(script)
    with pytest.raises(L.SequenceGap, match="event 2 came where 1 was due"):
        lens.analyze("dla").finish()


def test_counts_that_do_not_add_up_raise(fake: Any, lens: L.Client, new_script: Any) -> None:
    fake.play(new_script().accepted().record("a", {}).completed(results=2))
    with pytest.raises(L.MissingPart, match="sent 2 results, 1 arrived"):
        lens.analyze("dla").finish()


def test_bytes_that_do_not_fill_the_shape_raise(fake: Any, lens: L.Client, new_script: Any) -> None:
    script = new_script().accepted().tensor("h", np.ones(6, np.float32))
    script.steps[1].result.tensor.shape[:] = [7]
    fake.play(script.completed())
    with pytest.raises(L.MissingPart, match="do not fill"):
        lens.analyze("dla").finish()


def test_items_carry_their_own_errors(fake: Any, lens: L.Client, new_script: Any, new_status: Any) -> None:
    bad = new_status(
        grpc.StatusCode.INVALID_ARGUMENT, "empty", reason="EMPTY", violations={"prompts[1]": "is empty"}
    )
    script = new_script().accepted().record("summary", {"n": 1}, item="0")
    script.result("summary", "1", error=bad)
    fake.play(script.completed())
    run = lens.analyze("dla")
    first, second = run.items()
    assert (first.item, first.error, first["summary"]["n"]) == ("0", None, 1)
    assert isinstance(second.error, L.InvalidArgument)
    assert second.error.violations == (L.FieldViolation("prompts[1]", "is empty"),)
    with pytest.raises(L.InvalidArgument):
        second["summary"]
    with pytest.raises(KeyError, match="several items"):
        run["summary"]
    assert run["summary", "0"]["n"] == 1
    with pytest.raises(L.InvalidArgument):
        run["summary", "1"]
    assert len(run.results()) == 1


def test_a_name_nobody_sent_is_a_key_error_that_lists_the_others(
    fake: Any, lens: L.Client, new_script: Any
) -> None:
    fake.play(new_script().accepted().record("summary", {}).completed())
    with pytest.raises(KeyError, match="there are summary"):
        lens.analyze("dla")["sumary"]


def test_cancel_reaches_the_server_and_reading_on_says_so(fake: Any, lens: L.Client, new_script: Any) -> None:
    fake.play(new_script().accepted().hang())
    run = lens.analyze("dla")
    assert isinstance(next(run), L.Accepted)
    run.cancel()
    with pytest.raises(L.Cancelled):
        run.finish()
    assert fake.ended.wait(10)


def test_leaving_the_block_cancels_what_still_runs(fake: Any, lens: L.Client, new_script: Any) -> None:
    fake.play(new_script().accepted().hang())
    with lens.analyze("dla") as run:
        next(run)
    assert fake.ended.wait(10)


def test_a_deadline_ends_the_run_and_the_work(fake: Any, lens: L.Client, new_script: Any) -> None:
    fake.play(new_script().accepted().hang())
    with pytest.raises(L.DeadlineExceeded, match=fake.target):
        lens.analyze("dla", timeout_s=0.2).finish()
    assert fake.ended.wait(10)


def test_an_error_is_raised_again_by_later_reads(fake: Any, lens: L.Client, new_script: Any) -> None:
    fake.play(new_script().accepted().abort(grpc.StatusCode.INTERNAL, "boom"))
    run = lens.analyze("dla")
    for _ in range(2):
        with pytest.raises(L.Internal, match="boom"):
            run.results()


async def test_an_async_run_gives_the_same(fake: Any, new_script: Any) -> None:
    script = new_script().accepted().tensor("h", np.ones(6, np.float32), chunk=8)
    fake.play(script.record("summary", {"n": 2}).completed())
    async with L.AsyncClient(fake.target) as lens:
        run = lens.analyze("dla")
        with pytest.raises(RuntimeError, match="await"):
            run["summary"]
        events = [event async for event in run]
        assert isinstance(events[0], L.Accepted)
        assert isinstance(events[-1], L.Completed)
        assert (await run)["summary"]["n"] == 2
        assert [value.name for value in await run.results()] == ["h", "summary"]
        assert [item.item async for item in run.items()] == [""]


async def test_cancelling_an_async_run_says_so(fake: Any, new_script: Any) -> None:
    fake.play(new_script().accepted().hang())
    async with L.AsyncClient(fake.target) as lens:
        run = lens.analyze("dla")
        assert isinstance(await anext(run), L.Accepted)
        run.cancel()
        with pytest.raises(L.Cancelled):
            await run
    assert await asyncio.to_thread(fake.ended.wait, 10)


async def test_cancelling_the_task_cancels_the_analysis(fake: Any, new_script: Any) -> None:
    fake.play(new_script().accepted().hang())
    async with L.AsyncClient(fake.target) as lens:
        run = lens.analyze("dla")
        await anext(run)
        task = asyncio.ensure_future(run.finish())
        await asyncio.sleep(0)  # lets the task reach its read
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(fake.ended.wait, 10)


async def test_an_async_stream_without_completed_raises(fake: Any, new_script: Any) -> None:
    fake.play(new_script().accepted())
    async with L.AsyncClient(fake.target) as lens:
        with pytest.raises(L.TruncatedStream):
            await lens.analyze("dla")
