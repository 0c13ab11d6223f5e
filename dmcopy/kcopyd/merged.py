"""Neighbours in the queue, which go out as one request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dmcopy.io.region import IoRegion
from dmcopy.io.request import Memory
from dmcopy.kcopyd.job import Work


class MergedCopy(Work):
    """Neighbours as one request, in ascending order: they are booked, not it."""

    def __init__(
        self, works: Sequence[Work], memory: Memory, notify: Callable[[Any], object]
    ) -> None:
        first, last = works[0], works[-1]
        sectors = last.source.end - first.source[1]
        source, dest = first.source, first.dests[0]
        super().__init__(
            IoRegion(source[0], source[1], sectors), [IoRegion(dest[0], dest[1], sectors)]
        )
        self.memory = memory
        self.notify = notify
        self.merged = works


def neighbours(waiting: Iterable[Work], limit: int) -> list[Work]:
    """Return what waits first and may go out as one, of at most `limit` bytes together."""
    found: list[Work] = []
    size = 0
    for work in waiting:
        size += work.bytes
        if size > limit or (found and not _is_followed(found[-1], work)):
            break
        found.append(work)
    return found


def _is_followed(one: Work, other: Work) -> bool:
    """Return whether `other` begins where the one ends, on both sides."""
    device, sector, count = one.source
    next_device, next_sector, _ = other.source
    if next_sector != sector + count or next_device is not device:
        return False
    if one.alone or other.alone or len(one.dests) != 1 or len(other.dests) != 1:
        return False
    device, sector, count = one.dests[0]
    next_device, next_sector, _ = other.dests[0]
    return next_sector == sector + count and next_device is device
