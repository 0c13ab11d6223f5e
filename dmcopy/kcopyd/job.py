"""One copy: a future with the kernel's two results, and what the kernel does not tell.

The kernel's callback says `read_err` (0 or 1) and `write_err` (bit i: dests[i]) and nothing about
how far a failed copy got. A `CopyJob` also knows which sectors reached each destination and which
failed, can be cancelled, waited for from any thread, and awaited.
"""

from __future__ import annotations

import enum
import errno
import threading
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from dmcopy.errors import DeadlineError
from dmcopy.io.region import IoRegion
from dmcopy.kcopyd.queued import QueuedCopy
from dmcopy.ranges import RangeSet

if TYPE_CHECKING:
    from dmcopy.kcopyd.client import Client
    from dmcopy.kcopyd.subjob import WriteSequence

MAX_REGIONS: Final = 8
"""The most destinations of one job (DM_KCOPYD_MAX_REGIONS, include/linux/dm-kcopyd.h)."""

Notify = Callable[[int, int, Any], object]


class Flag(enum.IntFlag):
    """How a job is done. The first two are the kernel's (there they are bit numbers 1 and 2)."""

    IGNORE_ERROR = 1 << 1
    """Errors are recorded but the job continues; what could not be read is written as zeroes."""
    WRITE_SEQ = 1 << 2
    """Writes are issued in ascending order; this switches IGNORE_ERROR off, as in the kernel."""
    SPARSE = 1 << 16
    """Not the kernel's: blocks of zeroes are zeroed out instead of written."""


class Failure(NamedTuple):
    """A region whose I/O failed, and the errno."""

    region: IoRegion
    errno: int


class Job:
    """What every job is: a future with the kernel's two results.

    `read_err`, `write_err`: final when `done`. `write_failures`: the regions that could not be
    written, with the index of their destination. `failure`: what was raised on its way, such as by
    a throttle or an iterator of moves, and ended it.
    """

    client: Client
    callback: Notify | None
    context: Any
    done = False
    cancelled = False
    read_err = 0
    write_err = 0
    write_failures: Sequence[tuple[int, Failure]] = ()
    failure: BaseException | None = None
    active = 0
    """How many of its requests wait or are under way."""
    _waiters: list[Callable[[], object]] | None = None

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled else "done" if self.done else "running"
        return (
            f"<{type(self).__name__} {self} {state} "
            f"read_err={self.read_err} write_err={self.write_err:#x}>"
        )

    @property
    def ok(self) -> bool:
        """Whether it is done, whole, and nothing failed."""
        return self.done and not (
            self.read_err or self.write_err or self.cancelled or self.failure is not None
        )

    @property
    def may_go_on(self) -> bool:
        """Whether another slice may be begun: not after an error, and not when cancelled."""
        return not (self.read_err or self.write_err or self.cancelled or self.failure is not None)

    def cancel(self) -> bool:
        """Start nothing more of it. Returns whether there was still something to cancel.

        What is in flight is finished, then the callback comes as usual; `CopyJob.written` says what
        reached each destination. Only from the reactor's thread. (The kernel has but a stub of it.)
        """
        return self.client.cancel(self)

    def wait(self, timeout: float | None = None) -> Self:
        """Wait until it is done and return it; drives the reactor when called on its thread.

        Raises DeadlineError after `timeout` seconds, and UsageError inside a callback.
        """
        reactor = self.client.reactor
        if reactor.is_mine:
            reactor.run_until(lambda: self.done, timeout, f"the {self}")
            return self
        event = threading.Event()
        self.add_done_callback(event.set)
        if not event.wait(timeout):
            raise DeadlineError(f"waited {timeout:g} s for the {self}")
        return self

    def add_done_callback(self, notify: Callable[[], object]) -> None:
        """Call `notify()` on the reactor when it is done, immediately if it is. From any thread.

        What it raises is reported as what the job's callback raises, see `Reactor.on_exception`.
        """
        reactor = self.client.reactor
        if reactor.is_mine:
            self._add_waiter(notify)
        else:
            reactor.call_soon_threadsafe(lambda: self._add_waiter(notify))

    def __await__(self) -> Generator[Any, None, Self]:
        from dmcopy.io.aio import wait_for

        yield from wait_for(self.client.reactor, self.add_done_callback).__await__()
        return self

    def break_off(self, error: BaseException) -> None:
        """Note what was raised on its way: it ends when nothing of it is in flight."""
        if self.failure is None:
            self.failure = error

    def finish(self) -> None:
        """Become done: run the callback, then wake what waits."""
        self.done = True
        if self.callback is not None:
            try:
                self.callback(self.read_err, self.write_err, self.context)
            except BaseException as error:
                self.client.reactor.report(error)
        if self._waiters is not None:
            waiters, self._waiters = self._waiters, None
            for notify in waiters:
                self._tell(notify)

    def _add_waiter(self, notify: Callable[[], object]) -> None:
        if self.done:
            self._tell(notify)
        elif self._waiters is None:
            self._waiters = [notify]
        else:
            self._waiters.append(notify)

    def _tell(self, notify: Callable[[], object]) -> None:
        try:
            notify()
        except BaseException as error:
            self.client.reactor.report(error)


class CopyJob(Job, QueuedCopy):
    """A copy that `Client.copy` or `Client.zero` started.

    `source` and `dests` are its regions; a job that `zeroes` has its first destination for a
    source.

    `read_failures`: the regions that could not be read. A failed region is as long as the request
    that failed (at most a sub-job).
    """

    read_failures: Sequence[Failure] = ()
    # How far the slicing got, and which sectors were written: all of them together, or as booked
    # slice by slice.
    cursor = 0
    is_written = False
    sequence: WriteSequence | None = None
    _written: list[RangeSet] | None = None

    def __init__(
        self,
        client: Client,
        source: IoRegion,
        dests: Sequence[IoRegion],
        flags: int,
        callback: Notify | None,
        context: Any,
    ) -> None:
        self.client = client
        self.source = source
        self.dests = dests
        self.bytes = source[2] << 9
        self.flags = flags
        self.callback = callback
        self.context = context

    def __str__(self) -> str:
        dests = ", ".join(map(str, self.dests))
        return f"zeroing of {dests}" if self.zeroes else f"copy of {self.source} to {dests}"

    @property
    def job(self) -> CopyJob:
        """The job that it belongs to as a request: itself."""
        return self

    @property
    def count(self) -> int:
        """The job's length in sectors."""
        return self.source.count

    @property
    def may_go_on(self) -> bool:
        """Whether another slice may be begun; with IGNORE_ERROR also after an error."""
        if self.flags & Flag.IGNORE_ERROR:
            return not self.cancelled and self.failure is None
        return super().may_go_on

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

    def record(self, index: int, start: int, count: int) -> None:
        """Note that `count` sectors from `start` on have reached destination `index`."""
        if self._written is None:
            self._written = [RangeSet() for _ in self.dests]
        self._written[index].add(start, start + count)

    def break_off(self, error: BaseException) -> None:
        """Note what was raised on its way; to its callback it is an error of every device."""
        if self.failure is not None:
            return
        self.failure = error
        self.book_read_failure(self.source, errno.EIO)
        for index, dest in enumerate(self.dests):
            self.book_write_failure(index, dest, errno.EIO)

    def book_read_failure(self, region: IoRegion, number: int) -> None:
        """Note that a part of the source could not be read."""
        self.read_err = 1
        self.read_failures = [*self.read_failures, Failure(region, number)]

    def book_write_failure(self, index: int, region: IoRegion, number: int) -> None:
        """Note that a part of destination `index` could not be written."""
        self.write_err |= 1 << index
        self.write_failures = [*self.write_failures, (index, Failure(region, number))]
