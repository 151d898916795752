"""Values that authors build."""

from lensd_api import Activations, Capture, Reduce, Site, Stack


def test_generic_values_may_be_made_with_a_type_argument() -> None:
    capture = Capture[Activations](frozenset({Site.HEADS}))
    assert capture == Capture(frozenset({Site.HEADS}))
    assert Reduce[int](len).fn is len


def test_a_stack_says_where_each_row_lies() -> None:
    stack = Stack({}, [None, None], [(0, 3), (1,)], [(5, 6, 7, 8), (5, 6)], ())
    assert len(stack) == 2
    assert (stack.slice_of(0), stack.slice_of(1)) == (slice(0, 2), slice(2, 3))
    assert (stack.src_slice_of(0), stack.src_slice_of(1)) == (slice(0, 4), slice(4, 6))
