"""A set of numbers kept as ranges: which sectors were written, which are left to do."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class RangeSet:
    """Sorted, disjoint, half-open ranges `(start, end)`; neighbours are joined.

    Adding and removing cost a binary search and the ranges that they touch.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Put `start` up to but not including `end` into the set."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def remove(self, start: int, end: int) -> None:
        """Take `start` up to but not including `end` out of the set."""
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        if start >= end or first >= last:
            return
        left = [(self._starts[first], start)] if self._starts[first] < start else []
        right = [(end, self._ends[last - 1])] if self._ends[last - 1] > end else []
        self._starts[first:last] = [piece[0] for piece in left + right]
        self._ends[first:last] = [piece[1] for piece in left + right]

    def total(self) -> int:
        """Return how many numbers are in the set."""
        return sum(self._ends) - sum(self._starts)

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges between `start` and `end` that are not in the set."""
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        for low, high in zip(self._starts[first:last], self._ends[first:last], strict=True):
            if start < low:
                yield start, low
            start = max(start, high)
        if start < end:
            yield start, end

    def __and__(self, other: RangeSet) -> RangeSet:
        """Return what is in both; costs a walk along both, however many ranges they have."""
        both = RangeSet()
        one = other_one = 0
        while one < len(self._starts) and other_one < len(other._starts):
            low = max(self._starts[one], other._starts[other_one])
            high = min(self._ends[one], other._ends[other_one])
            if low < high:
                both._starts.append(low)
                both._ends.append(high)
            if self._ends[one] == high:
                one += 1
            else:
                other_one += 1
        return both

    def copy(self) -> RangeSet:
        twin = RangeSet()
        twin._starts, twin._ends = self._starts[:], self._ends[:]
        return twin

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def __len__(self) -> int:
        """The number of ranges."""
        return len(self._starts)

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self._starts, number) - 1
        return place >= 0 and number < self._ends[place]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RangeSet):
            return NotImplemented
        return self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"RangeSet({list(self)})"
