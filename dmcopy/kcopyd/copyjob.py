"""One copy, and what the kernel does not tell of it: which sectors reached each destination."""

from __future__ import annotations

import enum
import errno
from collections.abc import Sequence
from typing import Any, Final

from dmcopy.io.region import IoRegion
from dmcopy.kcopyd.job import Failure, Job, Notify, Owner, Totals, Work
from dmcopy.ranges import RangeSet

MAX_REGIONS: Final = 8
"""The most destinations of one job (DM_KCOPYD_MAX_REGIONS, include/linux/dm-kcopyd.h)."""


class Flag(enum.IntFlag):
    """How a job is done. The first two are the kernel's (there they are bit numbers 1 and 2)."""

    IGNORE_ERROR = 1 << 1
    """Errors are recorded but the job continues; what could not be read is written as zeroes."""
    WRITE_SEQ = 1 << 2
    """Writes are issued in ascending order; this switches IGNORE_ERROR off, as in the kernel."""
    SPARSE = 1 << 16
    """Not the kernel's: blocks of zeroes are zeroed out instead of written."""


class CopyJob(Job, Work):
    """A copy that `Client.copy` or `Client.zero` started: one request, if it is no `SlicedCopy`.

    `source` and `dests` are its regions; a job that `zeroes` has its first destination for a
    source.

    `read_failures`: the regions that could not be read. A failed region is as long as the request
    that failed (at most a sub-job).
    """

    active = 1  # it waits as soon as it is queued
    read_failures: Sequence[Failure] = ()
    # Which sectors were written: all of them together, or as booked part by part.
    is_written = False
    _written: list[RangeSet] | None = None

    def __init__(
        self,
        client: Owner,
        source: IoRegion,
        dests: Sequence[IoRegion],
        callback: Notify | None,
        context: Any,
    ) -> None:
        self.client = client
        self.source = source
        self.dests = dests
        self.bytes = source[2] << 9
        self.callback = callback
        self.context = context

    def __str__(self) -> str:
        dests = ", ".join(map(str, self.dests))
        return f"zeroing of {dests}" if self.zeroes else f"copy of {self.source} to {dests}"

    @property
    def job(self) -> CopyJob:
        return self

    @property
    def count(self) -> int:
        """The job's length in sectors."""
        return self.source.count

    def written(self, index: int) -> RangeSet:
        """Return which sectors, counted from the job's start, have reached destination `index`.

        Exact at any time; after a failure or `cancel`, everything that is not in it may hold the
        old data or, where a write failed, anything.
        """
        if self._written is not None:
            return self._written[index].copy()
        return RangeSet([(0, self.count)] if self.is_written else [])

    def progress(self) -> tuple[int, ...]:
        """Return how many sectors have reached each destination."""
        if self._written is not None:
            return tuple(ranges.total() for ranges in self._written)
        return (self.count if self.is_written else 0,) * len(self.dests)

    def break_off(self, error: BaseException) -> None:
        """Note what was raised on its way; to its callback it is an error of every device."""
        if self.failure is not None:
            return
        self.failure = error
        self._book_read_failure(self.source, errno.EIO)
        for index, dest in enumerate(self.dests):
            self._book_write_failure(index, dest, errno.EIO)

    def dropped(self) -> None:
        """Note, where it was to go out alone, that the merged one may have written some of it."""
        if self.alone and self.failure is None:
            self._book_write_failure(0, self.dests[0], errno.ECANCELED)

    def book(self, totals: Totals) -> CopyJob:
        """Note what became of it as one request."""
        if self.error or self.write_errors:
            self.book_part(self, 0, totals)
        else:
            self.is_written = True
            sectors = self.source[2]
            totals.sectors_read += sectors
            totals.sectors_written += sectors * len(self.dests)
        return self

    def book_part(self, part: Work, offset: int, totals: Totals) -> None:
        """Note how a part, `offset` sectors from the start, ended: errors, good destinations."""
        if part.error:
            self._book_read_failure(part.source, part.error)
        elif not part.zeroes:
            totals.sectors_read += part.source[2]
        for index, error in part.write_errors.items():
            self._book_write_failure(index, part.dests[index], error)
        if part.is_unwritten:
            return
        if self._written is None:
            self._written = [RangeSet() for _ in self.dests]
        for index, dest in enumerate(part.dests):
            if index not in part.write_errors:
                self._written[index].add(offset, offset + dest[2])
                totals.sectors_written += dest[2]

    def _book_read_failure(self, region: IoRegion, number: int) -> None:
        self.read_err = 1
        self.read_failures = [*self.read_failures, Failure(region, number)]

    def _book_write_failure(self, index: int, region: IoRegion, number: int) -> None:
        self.write_err |= 1 << index
        self.write_failures = [*self.write_failures, (index, Failure(region, number))]
