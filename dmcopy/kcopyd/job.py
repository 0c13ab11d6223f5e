"""A job, a future with the kernel's two results, and the work that it is done in.

The kernel's callback says `read_err` (0 or 1) and `write_err` (bit i: dests[i]) and nothing more. A
job here can also be cancelled, waited for from any thread, and awaited.

A job cuts itself into work and books what became of it; the dispatcher knows nothing else of jobs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, Protocol, Self

from dmcopy.errors import DeadlineError
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import IoRegion
from dmcopy.io.request import CopyIo
from dmcopy.kcopyd.pages import Extents

Notify = Callable[[int, int, Any], object]


class Failure(NamedTuple):
    """A region whose I/O failed, and the errno."""

    region: IoRegion
    errno: int


class Totals:
    """What all jobs of a client have read and written, in sectors."""

    sectors_read = 0
    sectors_written = 0


class Owner(Protocol):
    """The client of a job."""

    reactor: Reactor

    def cancel(self, job: Job) -> bool:
        """See `Job.cancel`."""


class Job:
    """What every job is: a future with the kernel's two results.

    `read_err`, `write_err`: final when `done`. `write_failures`: the regions that could not be
    written, with the index of their destination. `failure`: what was raised on its way, such as by
    a throttle or an iterator of moves, and ended it.
    """

    client: Owner
    callback: Notify | None
    context: Any
    done = False
    cancelled = False
    read_err = 0
    write_err = 0
    write_failures: Sequence[tuple[int, Failure]] = ()
    failure: BaseException | None = None
    active = 0
    """How much of its work waits or is under way."""
    has_more = False
    """Whether there may be work that it was not cut into yet."""
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
        """Whether more work may be begun: not after an error, and not when cancelled."""
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

        Its exceptions are reported as those of the job's callback, see `Reactor.on_exception`.
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

    def cut(self) -> Work | None:
        """Return its next work, in ascending order. Called only while it `has_more`."""
        raise NotImplementedError

    def dropped(self) -> None:
        """Note that work of it was taken out of the queue: it was cancelled or broken off."""

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


class Work(CopyIo):
    """What waits in the queue and is then in flight: a job, if it is one request, or a part of one.

    `pages` is what it took from the pool: `extents`, rounded up to whole pages. `zeroes`: it reads
    nothing, and needs none. `is_plain`: one read, then the writes, with nothing to look at in
    between. `alone`: not to be merged with a neighbour. `slept`: how often the throttle made it
    wait. `merged`: the neighbours that it does as one. `again`: what is to be tried again, by
    parts, in its place. `memory` and `notify` are set where it is queued.
    """

    pages: Extents = ()
    extents: Extents = ()
    zeroes = False
    is_plain = True
    alone = False
    slept = 0
    merged: Sequence[Work] = ()
    again: Sequence[Work] = ()

    def __init__(self, source: IoRegion, dests: Sequence[IoRegion]) -> None:
        self.source = source
        self.dests = dests
        self.bytes = source[2] << 9

    @property
    def job(self) -> Job:
        raise NotImplementedError

    def start(self, reactor: Reactor) -> None:
        """Do what is not plain. It comes to its `notify` even if this raises."""
        raise NotImplementedError

    @property
    def is_unwritten(self) -> bool:
        """Whether it ended without a write, as it does when its read fails."""
        return self.error != 0

    def book(self, totals: Totals) -> Job:
        """Note with its job what became of it, and return the job."""
        raise NotImplementedError
