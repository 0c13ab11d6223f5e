"""One destination of a transfer, and all that is known about its sectors."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Final, NamedTuple

from dmcopy.io.region import IoRegion
from dmcopy.ranges import RangeSet

GONE: Final = frozenset({errno.ENODEV, errno.ENXIO, errno.EBADF, errno.ESHUTDOWN, errno.ENOMEDIUM})
"""Errors of a device that is not there any more: no other sector will do better."""
HOPELESS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EPERM})
"""Errors that are not about single blocks, so that a closer look at the range is no use."""


def errno_name(number: int) -> str:
    """Return EIO for 5; the number itself where it has no name."""
    return errno.errorcode.get(number, str(number))


class FailedRange(NamedTuple):
    """Offsets from `start` to `end` that failed with `errno`."""

    start: int
    end: int
    errno: int


class Failures:
    """Which offsets failed, and how; neighbours that failed alike are one range."""

    def __init__(self) -> None:
        self._by_errno: dict[int, RangeSet] = {}

    def add(self, start: int, end: int, error: int) -> None:
        """Note that a range failed with the errno `error`."""
        self._by_errno.setdefault(error, RangeSet()).add(start, end)

    def total(self) -> int:
        """Return how many sectors failed."""
        return sum(ranges.total() for ranges in self._by_errno.values())

    def ranges(self) -> RangeSet:
        """Return the failed offsets as one set."""
        return RangeSet((failed.start, failed.end) for failed in self)

    def __iter__(self) -> Iterator[FailedRange]:
        found = [
            FailedRange(start, end, error)
            for error, ranges in self._by_errno.items()
            for start, end in ranges
        ]
        return iter(sorted(found))

    def __bool__(self) -> bool:
        return bool(self._by_errno)


class Destination:
    """A destination's region, and what became of it.

    Attributes:
        written: offsets whose write has ended well.
        durable: those that a flush has covered since; only these may be called done.
        failures: offsets whose write failed for good.
        error: why nothing more is written to it (an errno), 0 while all is well.
        cause: "write" or "flush", what failed with `error`.
    """

    def __init__(self, region: IoRegion) -> None:
        self.region = region
        self.written = RangeSet()
        self.durable = RangeSet()
        self.failures = Failures()
        self.error = 0
        self.cause = ""
        self.sectors = 0
        self.unflushed = False

    @property
    def path(self) -> str:
        """The device's name in messages."""
        return self.region.device.path

    @property
    def ok(self) -> bool:
        """Whether nothing of it failed."""
        return not (self.error or self.failures)

    def needs(self) -> RangeSet:
        """Return the offsets that are not durable yet."""
        return RangeSet(self.durable.gaps(0, self.region.count))

    def resume(self, durable: RangeSet) -> None:
        """Take over what an earlier run made durable."""
        self.durable = durable.copy()
        self.written = durable.copy()
        self.sectors = durable.total()

    def wrote(self, start: int, end: int) -> None:
        """Book a write that ended well."""
        self.written.add(start, end)
        self.sectors += end - start
        self.unflushed = True

    def flushed(self, covered: RangeSet) -> None:
        """Book a flush that began when `covered` had been written."""
        self.durable = covered

    def drop(self, error: int, cause: str) -> None:
        """Write nothing more to it. After a failed flush nothing is certain that it was to cover.

        (A kernel reports a failed write-back once and may then forget it, so a second flush that
        succeeds would prove nothing.)
        """
        self.error, self.cause = error, cause
        if cause == "flush":
            for lost in self.written & RangeSet(self.durable.gaps(0, self.region.count)):
                self.failures.add(*lost, error)
            self.written = self.durable.copy()
            self.sectors = self.written.total()
