"""Runs the rows of a batch on the device and settles their calls.

Invariant: every row is answered or its call fails, whatever happens to its neighbours; a fault is
narrowed down to the call that is to blame for it.
"""

import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lensd_api import LensdError, Site, Stack
from lensd_server.engine.anatomy.capture import GatherGroup
from lensd_server.engine.anatomy.inspect import InspectedModel
from lensd_server.engine.batching.batch import captured_bytes, group_rows, pad, split_stack
from lensd_server.engine.batching.call import QueuedRow
from lensd_server.engine.batching.sharing import share
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.device import Device, is_out_of_memory, out_of_memory
from lensd_server.engine.faults import internal_failure, plugin_failure

RunBatch = Callable[..., list[dict[Site, Tensor]]]
_Members = list[QueuedRow]


class BatchExecution:
    """Used by the device thread of one model only."""

    def __init__(
        self,
        name: str,
        model: InspectedModel,
        device: Device,
        run: RunBatch,
        clock: Callable[[], float],
    ) -> None:
        self._name, self._model, self._device = name, model, device
        self._forward_pass, self._clock = run, clock

    def run(self, rows: Sequence[QueuedRow]) -> None:
        """Runs ``rows`` together. Raises only for a bug of ours."""
        rows = [row for row in rows if row.wanted]
        if not rows:
            return
        started = self._clock()
        fault: Exception | None = None
        settled: list[tuple[_Members, list[Any]]] = []
        fetched: list[list[Any]] = []
        failed: list[tuple[_Members, Exception]] = []
        lanes = share([row.row for row in rows])
        try:
            with torch.inference_mode():
                for members, stack in self._forward(rows, lanes):
                    try:
                        settled.append((members, self._reduce(members, stack)))
                    except Exception as error:  # an analyzer's own code
                        failed.append((members, error))
            fetched = self._device.fetch([values for _, values in settled])
        except Exception as error:  # the model's own code, or the device
            fault = error
        if fault is not None:
            self._narrow(rows, fault, exhausted=is_out_of_memory(fault))
            return
        _account(rows, lanes, self._clock() - started)
        for (members, _), values in zip(settled, fetched, strict=True):
            for row, value in zip(members, values, strict=True):
                row.call.put(row.index, value)
        for members, error in failed:
            self._blame(members, error, alone=len(rows) == 1)

    def _forward(
        self, rows: Sequence[QueuedRow], lanes: Sequence[Sequence[int]]
    ) -> list[tuple[_Members, Stack]]:
        prepared = [row.row for row in rows]
        inputs = pad([prepared[lane[0]] for lane in lanes])
        groups = group_rows(prepared, [row.call.key for row in rows], lanes)
        put = self._device.put
        captured = self._forward_pass(
            self._model,
            put(inputs.input_ids),
            inputs.attention_mask,  # read on the host; only special rows need it on the device
            None if inputs.position_ids is None else put(inputs.position_ids),
            inputs.lengths,
            [group for group, _ in groups],
        )
        stacks: list[tuple[_Members, Stack]] = []
        for (group, indices), values in zip(groups, captured, strict=True):
            members = [rows[i] for i in indices]
            _note_captures(members, values)
            stacks.append((members, _stack(group, members, values)))
        return stacks

    def _reduce(self, members: Sequence[QueuedRow], stack: Stack) -> list[Any]:
        reduce = members[0].call.reduce
        if reduce is None:
            return list(split_stack(stack))
        values = list(reduce(stack, self._model.view))
        if len(values) != len(members):
            name = getattr(reduce, "__qualname__", repr(reduce))
            raise TypeError(f"{name} must return one value a row: {len(members)} rows, {len(values)} values")
        return values

    def _narrow(self, rows: Sequence[QueuedRow], fault: Exception, *, exhausted: bool) -> None:
        """A forward failed as a whole: try its halves, so that only the row that is to blame fails."""
        if exhausted:
            # The traceback's frames hold the very tensors that did not fit.
            traceback.clear_frames(fault.__traceback__)
            self._device.release()
        if len(rows) > 1:
            middle = len(rows) // 2
            self.run(rows[:middle])
            self.run(rows[middle:])
            return
        call = rows[0].call
        if exhausted:
            call.fail(out_of_memory(self._device.name, 1, rows[0].length))
        elif isinstance(fault, LensdError):  # the model takes no position ids, for instance
            call.fail(fault)
        else:
            call.fail(
                internal_failure(
                    fault, f"the forward pass of model {self._name}", request_id=call.ticket.request_id
                )
            )

    def _blame(self, members: Sequence[QueuedRow], error: Exception, *, alone: bool) -> None:
        """A reduce failed: fail the call it belongs to, which needs another try if there are several."""
        if is_out_of_memory(error):
            if alone:
                members[0].call.fail(out_of_memory(self._device.name, 1, members[0].length))
            elif len(members) == 1:
                self._device.release()
                self.run(members)
            else:
                self._narrow(members, error, exhausted=True)
            return
        calls = {id(row.call): row.call for row in members}
        if len(calls) > 1:
            for call in calls.values():
                self.run([row for row in members if row.call is call])
            return
        (call,) = calls.values()
        if isinstance(error, LensdError):
            call.fail(error)
        else:
            ticket = call.ticket
            call.fail(plugin_failure(error, analyzer=ticket.analyzer, request_id=ticket.request_id))


def _stack(group: GatherGroup, members: Sequence[QueuedRow], values: dict[Site, Tensor]) -> Stack:
    return Stack(
        values=values,
        args=[row.call.args for row in members],
        positions=list(group.positions),
        tokens=[row.row.tokens for row in members],
        layers=group.layers,
    )


def _note_captures(members: Sequence[QueuedRow], values: dict[Site, Tensor]) -> None:
    each = captured_bytes(values) // len(members)
    own: dict[Ticket, int] = {}
    for row in members:
        own[row.call.ticket] = own.get(row.call.ticket, 0) + each
    for ticket, held in own.items():
        ticket.usage.peak_capture_bytes = max(ticket.usage.peak_capture_bytes, held)


def _account(rows: Sequence[QueuedRow], lanes: Sequence[Sequence[int]], seconds: float) -> None:
    """Counts rows, shared ones too, for their analyses; each of them had the whole forward."""
    for call in {id(row.call): row.call for row in rows}.values():
        call.forward_s += seconds
    for ticket in {row.call.ticket for row in rows}:
        ticket.usage.forward_s += seconds
        ticket.usage.largest_batch = max(ticket.usage.largest_batch, len(lanes))
    for lane in lanes:
        for number, i in enumerate(lane):
            usage = rows[i].call.ticket.usage
            usage.rows += 1
            usage.tokens += rows[i].length
            usage.shared_rows += number > 0
