"""Exceptions joined to extents: consecutive chunks of the origin in consecutive chunks of the COW.

An extent never runs over metadata, since no data chunk's number is an area's.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import and_, eq
from typing import Final, NamedTuple

_SAMPLE: Final = 1000


class Consecutive(NamedTuple):
    """`count` chunks of the origin from `old` on, which are in the COW from chunk `new` on."""

    old: int
    new: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which is not used


def join(olds: array[int], news: array[int]) -> Iterator[Consecutive]:
    """Join exceptions, as they come, as far as both numbers are consecutive."""
    start, stop = 0, len(olds)
    continues = bytes(map(and_, _steps_of_one(olds), _steps_of_one(news)))
    while start < stop:
        end = continues.find(0, start) + 1 or stop
        yield Consecutive(olds[start], news[start], end - start)
        start = end


def _steps_of_one(numbers: array[int]) -> Iterator[bool]:
    """Say of each number whether the next one is one more; no loop of Python is as quick."""
    return map(eq, map((1).__add__, numbers), islice(numbers, 1, None))


def mean_count(pairs: Iterable[tuple[int, int]]) -> int:
    """Return how many chunks an extent has on average, judged by the first pairs."""
    sample = list(islice(pairs, _SAMPLE))
    olds, news = (array("Q", (pair[which] for pair in sample)) for which in (0, 1))
    return len(sample) // (len(list(join(olds, news))) or 1)
