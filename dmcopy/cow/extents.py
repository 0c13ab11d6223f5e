"""Exceptions joined to extents: consecutive chunks of the origin in consecutive chunks of the COW.

An extent never runs over metadata, since no data chunk's number is an area's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Consecutive(NamedTuple):
    """`count` chunks of the origin from `old` on, which are in the COW from chunk `new` on."""

    old: int
    new: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which is not used


def join(pairs: Iterable[tuple[int, int]]) -> Iterator[Consecutive]:
    """Join pairs of (old, new), as they come, as far as both are consecutive."""
    first_old = first_new = count = 0
    for old, new in pairs:
        if count and old == first_old + count and new == first_new + count:
            count += 1
            continue
        if count:
            yield Consecutive(first_old, first_new, count)
        first_old, first_new, count = old, new, 1
    if count:
        yield Consecutive(first_old, first_new, count)
