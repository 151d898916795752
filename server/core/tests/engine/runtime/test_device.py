"""What depends on the device, as far as a CPU can show it."""

import threading
import weakref
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch

from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.batching.turn import Turn
from lensd_server.engine.device import Devices, choose_device, choose_dtype, usable_cores
from lensd_server.engine.device_faults import is_out_of_memory


class Pair(NamedTuple):
    left: object
    right: object


@dataclass(frozen=True, slots=True)
class Boxed:
    inner: object
    label: str


def test_fetched_tensors_are_ordinary_and_share_nothing() -> None:
    device = choose_device("cpu")
    with torch.inference_mode():
        whole = torch.arange(10.0)
        part = whole[2:4]
    value = {"a": [part, 1], "b": Pair(part, (part, "x")), "c": Boxed(part, "y"), "d": None}
    fetched = device.fetch(value)
    for tensor in (fetched["a"][0], fetched["b"].left, fetched["b"].right[0], fetched["c"].inner):
        assert torch.equal(tensor, part)
        assert not tensor.is_inference()
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    assert (fetched["a"][1], fetched["b"].right[1], fetched["c"].label, fetched["d"]) == (1, "x", "y", None)
    assert isinstance(fetched["b"], Pair)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("could not create a memory object"), True),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_memory_that_ran_out_is_recognised(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_a_real_allocation_that_cannot_succeed_is_recognised() -> None:
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**58, dtype=torch.uint8)
    assert is_out_of_memory(failed.value)


def test_full_precision_on_a_cpu_unless_told_otherwise() -> None:
    assert choose_dtype("auto", on_cpu=True) is torch.float32
    assert choose_dtype("bfloat16", on_cpu=True) is torch.bfloat16
    assert choose_device("cpu").name == "cpu"


def test_no_more_threads_than_cores() -> None:
    assert usable_cores() >= 1


def test_a_turn_is_handed_over_in_order_of_asking() -> None:
    turn, order = Turn(), []
    asked = [threading.Event() for _ in range(4)]

    def take(number: int) -> None:
        asked[number].set()
        with turn:
            order.append(number)

    threads = []
    with turn:
        for number in range(4):
            thread = threading.Thread(target=take, args=(number,))
            thread.start()
            assert asked[number].wait(60)
            while len(turn._waiting) <= number:
                pass
            threads.append(thread)
    for thread in threads:
        thread.join(60)
    assert order == [0, 1, 2, 3]


def test_a_thread_that_would_wait_for_itself_is_refused() -> None:
    turn, ticket = Turn(), Ticket()
    for take in (lambda: turn, lambda: turn.of(ticket)):
        with take(), pytest.raises(RuntimeError, match="has its device's turn already"):
            with turn.of(ticket):
                pass
    with turn:
        pass


def test_a_turn_knows_who_computes_while_others_wait_and_since_when() -> None:
    now, ticket = 100.0, Ticket()
    turn = Turn(clock=lambda: now)
    with turn.of(ticket):
        now = 130.0
        assert turn.computes_here
        assert turn.holding_up is None, "nobody waits"
        waits = threading.Thread(target=lambda: turn.__enter__())
        waits.start()
        while not turn._waiting:
            pass
        now = 150.0
        assert turn.computing == (ticket, 100.0)
        assert turn.holding_up == (ticket, 130.0)
    waits.join(60)
    assert turn.computing is turn.holding_up is None, "a forward is nobody's own code"


def test_a_turn_is_given_back_after_an_exception() -> None:
    turn = Turn()
    with pytest.raises(KeyError):
        with turn:
            raise KeyError
    with turn:
        pass


def test_numbers_mean_on_a_gpu_what_they_mean_on_a_cpu() -> None:
    """Settings of torch's that hold for the whole process, whatever its environment says."""
    Devices()
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_a_fault_is_kept_once_and_for_good() -> None:
    class Fault(RuntimeError):
        pass

    devices = Devices()
    fault = Fault("CUDA error: device-side assert triggered")
    known = weakref.ref(fault)
    assert devices.open("cpu").is_lost(fault)
    assert devices.open("cpu").is_lost(fault)
    assert len(devices._lasting._faults) == 1
    del fault
    assert known() is not None
