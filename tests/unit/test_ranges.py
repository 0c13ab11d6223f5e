"""Range sets against sets of numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dmcopy.ranges import RangeSet

steps = st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 40)), max_size=30)


@given(steps)
def test_add_and_remove(steps: list[tuple[bool, int, int]]) -> None:
    ranges, model = RangeSet(), set[int]()
    for add, start, end in steps:
        if add:
            ranges.add(start, end)
            model |= set(range(start, end))
        else:
            ranges.remove(start, end)
            model -= set(range(start, end))
        assert {number for low, high in ranges for number in range(low, high)} == model
        assert all(a[1] < b[0] for a, b in zip(list(ranges), list(ranges)[1:], strict=False))
        assert ranges.total() == len(model)
        assert all((number in ranges) == (number in model) for number in range(42))


@given(steps, st.integers(0, 40), st.integers(0, 40))
def test_gaps(steps: list[tuple[bool, int, int]], start: int, end: int) -> None:
    ranges = RangeSet((low, high) for _, low, high in steps)
    gaps = {number for low, high in ranges.gaps(start, end) for number in range(low, high)}
    assert gaps == {number for number in range(start, end) if number not in ranges}


def test_neighbours_are_joined_and_equal() -> None:
    assert RangeSet([(0, 2), (2, 4)]) == RangeSet([(0, 4)])
    assert repr(RangeSet([(1, 2), (4, 6)])) == "RangeSet([(1, 2), (4, 6)])"


@given(steps, steps)
def test_what_is_in_both(
    some: list[tuple[bool, int, int]], others: list[tuple[bool, int, int]]
) -> None:
    one, other = (RangeSet((low, high) for _, low, high in each) for each in (some, others))
    both = one & other
    assert [number in both for number in range(42)] == [
        number in one and number in other for number in range(42)
    ]
    assert both == RangeSet(both), "neighbours are joined"
