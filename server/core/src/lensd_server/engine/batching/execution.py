"""Runs the rows of a batch on the device and settles their calls.

Invariant: every row is answered or its call fails, whatever happens to its neighbours; a fault is
narrowed down to the call that is to blame for it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lensd_api import LensdError, PluginFailure, Site, Stack, Unavailable
from lensd_server.engine.anatomy.capture import GatherGroup
from lensd_server.engine.anatomy.continuing import Continuation, check_continuation
from lensd_server.engine.anatomy.inspect import InspectedModel
from lensd_server.engine.anatomy.past import LaneCache
from lensd_server.engine.batching.batch import group_wanted, pad, split_stack
from lensd_server.engine.batching.call import QueuedRow
from lensd_server.engine.batching.progress import Batch
from lensd_server.engine.batching.stepping import SPARE
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.batching.weights import WeightsChanged, WriteCount
from lensd_server.engine.device import Device
from lensd_server.engine.device_faults import device_lost, is_out_of_memory, out_of_memory
from lensd_server.engine.faults import internal_failure, let_go, plugin_failure

RunBatch = Callable[..., list[dict[Site, Tensor]]]


class BatchExecution:
    """Used by the device thread of one model only."""

    def __init__(
        self,
        name: str,
        model: InspectedModel,
        device: Device,
        run: RunBatch,
        clock: Callable[[], float],
        when_damaged: Callable[[Unavailable], None],
        when_read: Callable[[Sequence[QueuedRow]], None] = lambda _: None,
    ) -> None:
        """``when_damaged`` is called once, when a reduce has written into the weights; ``when_read`` with rows
        that are answered next."""
        self._when_read = when_read
        self._when_damaged = when_damaged
        self._name, self._model, self._device = name, model, device
        self._forward_pass, self._clock = run, clock
        #: Whose reduce runs and since when, by the clock; ``None`` while none does. Read by other threads.
        self.reducing: tuple[Ticket, float] | None = None
        self._continuation: Continuation | None = None
        self._writes = WriteCount((*model.module.parameters(), *model.module.buffers()))
        #: Why nothing this model says can be trusted any more; it is healed by being loaded anew.
        self._damage: Unavailable | None = None

    @property
    def continuation(self) -> Continuation:
        """Whether rows can be read in steps. Found out on first need, which takes a few short forwards."""
        if self._continuation is None:
            self._continuation = self._try_to_continue()
        return self._continuation

    def _try_to_continue(self, *, again: bool = True) -> Continuation:
        try:
            return check_continuation(self._model.structure)
        except Exception as error:  # a bug of ours, or the device
            self._check_device(error)
            let_go(error)
            if again and is_out_of_memory(error):
                self._device.release()
                return self._try_to_continue(again=False)
            internal_failure(error, f"trying whether model {self._name} can read on")  # for the log
            return Continuation(problem=f"the trial failed ({type(error).__name__})")

    def run(self, rows: Sequence[QueuedRow]) -> None:
        """Runs the next step of ``rows`` together. Raises DeviceLost, and else only for a bug of ours."""
        rows = [row for row in rows if row.wanted]
        if not rows:
            return
        if self._damage is not None:
            for row in rows:
                row.call.fail(self._damage)
            return
        started = self._clock()
        batch = Batch(rows)
        fault: BaseException | None = None
        fetched: list[list[Any]] = []
        try:
            with torch.inference_mode():
                self._read(batch)
            fetched = self._device.fetch([values for _, values in batch.reduced])
        except BaseException as error:  # the model's own code, or the device
            fault = error
        if fault is not None:
            del batch  # with all that is on the device
            self._narrow(rows, fault, exhausted=is_out_of_memory(fault))
            return
        batch.account(self._clock() - started)
        self._when_read(rows)
        batch.answer(fetched)
        failed = batch.failed
        # What was captured for all of them must not be held while some are tried again.
        del batch, fetched
        for _, error in failed:
            self._check_device(error)
            let_go(error)
        for members, error in failed:
            self._blame(members, error, alone=len(rows) == 1)

    def _read(self, batch: Batch) -> None:
        """The forward, and what is made of its captures."""
        cache = self._cache(batch)
        batch.lay_hold(self._forward(batch, cache))
        if cache is not None:
            batch.keep(cache)
        for members, stack in batch.stacks:
            try:
                batch.reduced.append((members, self._reduce(members, stack)))
            except BaseException as error:  # an analyzer's own code, which may even exit
                batch.failed.append((members, error))

    def _cache(self, batch: Batch) -> LaneCache | None:
        if not batch.goes_on or not self.continuation:
            return None
        grows = any(row.call.grows for row in batch.rows)
        return LaneCache(
            [step.past for step in batch.first],
            max(map(len, batch.first)),
            n_layers=self._model.anatomy.n_layers,
            spare=SPARE if grows else 0,
        )

    def _forward(
        self, batch: Batch, cache: LaneCache | None
    ) -> list[tuple[GatherGroup, tuple[int, ...], dict[Site, Tensor]]]:
        inputs = pad(batch.first, cache)
        groups = group_wanted(batch.wanted)
        put = self._device.put
        captured = self._forward_pass(
            self._model,
            put(inputs.input_ids),
            inputs.attention_mask,  # read on the host; only special rows need it on the device
            None if inputs.position_ids is None else put(inputs.position_ids),
            inputs.lengths,
            [group for group, _ in groups],
            *(() if cache is None else (cache,)),
        )
        return [(group, members, values) for (group, members), values in zip(groups, captured, strict=True)]

    def _reduce(self, members: Sequence[QueuedRow], stack: Stack) -> list[Any]:
        reduce = members[0].call.reduce
        if reduce is None:
            return list(split_stack(stack))
        if self._damage is not None:
            raise self._damage
        self.reducing = members[0].call.ticket, self._clock()
        writes = self._writes.now()
        try:
            values = list(reduce(stack, self._model.view))
        finally:
            self.reducing = None
            if self._writes.now() != writes:
                self._lay_down(members[0].call.ticket.analyzer)
        if len(values) != len(members):
            name = getattr(reduce, "__qualname__", repr(reduce))
            raise TypeError(f"{name} must return one value a row: {len(members)} rows, {len(values)} values")
        return values

    def _lay_down(self, analyzer: str) -> None:
        """The weights are not what they were: whoever asks from now on is refused. Raises WeightsChanged."""
        self._damage = Unavailable(
            f"analyzer {analyzer} wrote into the weights of model {self._name}, whose answers would be wrong: "
            "it is loaded anew; try again",
            reason="MODEL_DAMAGED",
            metadata={"model": self._name, "analyzer": analyzer},
            retry_after_s=1.0,
        )
        self._when_damaged(self._damage)
        raise WeightsChanged(f"a reduce of {analyzer} wrote into the weights of {self._name}")

    def _narrow(self, rows: Sequence[QueuedRow], fault: BaseException, *, exhausted: bool) -> None:
        """A forward failed as a whole: try its halves, so that only the row that is to blame fails."""
        self._check_device(fault)
        let_go(fault)
        if exhausted:
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

    def _check_device(self, fault: BaseException) -> None:
        """Raises DeviceLost when trying again cannot help anybody."""
        if self._device.is_lost(fault):
            raise device_lost(self._device.name) from fault

    def _blame(self, members: Sequence[QueuedRow], error: BaseException, *, alone: bool) -> None:
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
        if isinstance(error, WeightsChanged):
            for call in calls.values():
                call.fail(_failure_of(error, call.ticket))
            return
        if len(calls) > 1:
            for call in calls.values():
                self.run([row for row in members if row.call is call])
            return
        (call,) = calls.values()
        if isinstance(error, LensdError):
            call.fail(error)
        else:
            call.fail(_failure_of(error, call.ticket))


def _failure_of(error: BaseException, ticket: Ticket) -> PluginFailure:
    return plugin_failure(error, analyzer=ticket.analyzer, request_id=ticket.request_id)
