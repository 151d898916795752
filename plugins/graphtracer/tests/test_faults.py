"""Synthetic failures: a wrong fact where it matters, and a label that is true."""

import pytest

from lensd_graphtracer.examples import SOUND_PRICE
from lensd_graphtracer.faults import inject
from lensd_graphtracer.formats import read_trace


@pytest.mark.parametrize("spread", [True, False])
def test_only_the_labelled_step_and_what_it_reaches_change(spread: bool) -> None:
    trace = read_trace(SOUND_PRICE)
    faults = inject(trace, 5, 0, spread=spread)
    assert faults
    for fault in faults:
        changed = {old.index for old, new in zip(trace.steps, fault.trace.steps, strict=True) if old != new}
        assert changed == {fault.step, *fault.spread_to}
        assert bool(fault.spread_to) == spread
        assert fault.agent == trace.steps[fault.step].agent
        assert fault.before != fault.after
        assert fault.after in fault.trace.steps[fault.step].content


def test_steps_come_by_falling_impact() -> None:
    impacts = [fault.impact for fault in inject(read_trace(SOUND_PRICE), 5, 0, spread=True)]
    assert impacts == sorted(impacts, reverse=True)


def test_the_same_seed_gives_the_same_failures() -> None:
    trace = read_trace(SOUND_PRICE)
    assert inject(trace, 3, 7, spread=True) == inject(trace, 3, 7, spread=True)
