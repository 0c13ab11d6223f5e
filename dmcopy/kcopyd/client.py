"""The client: a page pool, a queue, and the way of each sub-job through them.

    copy() → waiting (in order, for pages) → in flight → done, pages back → callback

Rules taken from the kernel (drivers/md/dm-kcopyd.c, 6.1): jobs are cut into sub-jobs of 512 KiB,
eight under way per job, started in ascending order; work that waits for pages is not overtaken;
after an error no new slice of a job starts unless IGNORE_ERROR, slices already cut are copied;
pages go back before the callback; callbacks come one at a time, in order of completion, never
inside `copy`; `destroy` waits for every job and its callback.

Unlike the kernel's, this client never uses a page beyond its own, merges neighbouring small copies
that wait side by side, moves whole lists of regions (`copy_list`), and can cancel.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

from dmcopy.errors import ClosedError, DeadlineError, DmcopyError, UsageError
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device, IoRegion
from dmcopy.kcopyd.check import check_copy, check_dests, check_sliceable
from dmcopy.kcopyd.copyjob import CopyJob
from dmcopy.kcopyd.dispatch import Dispatcher
from dmcopy.kcopyd.job import Job, Notify
from dmcopy.kcopyd.listjob import ListJob, window_sectors
from dmcopy.kcopyd.moves import Move
from dmcopy.kcopyd.pages import PagePool
from dmcopy.kcopyd.subjob import SlicedCopy
from dmcopy.kcopyd.throttle import Throttle
from dmcopy.units import PAGE_SECTORS

SUB_JOB_SECTORS = 1024
"""kcopyd_subjob_size_kb of dm_mod: 512 KiB by default, at most 1024 KiB (measured on 6.12)."""
MAX_SUB_JOB_SECTORS = 2048


class ClientStatistics(NamedTuple):
    """A snapshot of a client. `merged`: copies that went out with a neighbour."""

    pages: int
    pages_free: int
    jobs: int
    jobs_done: int
    waiting: int
    in_flight: int
    merged: int
    sectors_read: int
    sectors_written: int


class PreparedCallback:
    """A callback that counts as a job of its client until it is fired, once, from any thread."""

    def __init__(self, reactor: Reactor, work: Dispatcher, notify: Notify, context: Any) -> None:
        self._reactor = reactor
        self._work = work
        self._notify = notify
        self._context = context

    def fire(self, read_err: int = 0, write_err: int = 0) -> None:
        """Have the callback called on the reactor, in turn with the client's others."""
        if not self._work.unfired.pop(self, False):
            raise UsageError("a prepared callback can be fired only once, while there is a client")
        self._reactor.call_soon_threadsafe(lambda: self._run(read_err, write_err))

    def _run(self, read_err: int, write_err: int) -> None:
        try:
            self._notify(read_err, write_err, self._context)
        except BaseException as error:
            self._reactor.report(error)
        self._work.job_ended()


class Client:
    """A kcopyd client with `num_pages` pages of 4096 bytes for its data.

    `reactor`: where it runs, by default one of its own on the calling thread. `throttle`: may be
    shared with other clients. `sub_job_sectors`: the longest request, at most 2048; the default is
    the kernel's 1024, or a quarter of a pool too small for four of those. `depth`: the most
    requests in flight. Raises UsageError for sizes that cannot be.
    """

    def __init__(
        self,
        num_pages: int,
        *,
        reactor: Reactor | None = None,
        throttle: Throttle | None = None,
        sub_job_sectors: int | None = None,
        depth: int = 32,
    ) -> None:
        if depth < 1:
            raise UsageError(f"a client needs a depth of at least 1, not {depth}")
        self.pool = PagePool(num_pages)
        self.sub_job_sectors = _sub_job_sectors(sub_job_sectors, num_pages)
        self._owns_reactor = reactor is None
        self.reactor = reactor or Reactor()
        self.reactor.pin(self.pool.memory)
        self._work = Dispatcher(self.reactor, self.pool, throttle, self.sub_job_sectors, depth)
        self._queue = self._work.queue
        self._destroyed = False
        self._freed = False

    def copy(
        self,
        source: IoRegion,
        dests: Sequence[IoRegion],
        flags: int = 0,
        notify: Notify | None = None,
        context: Any = None,
    ) -> CopyJob:
        """Start to copy `source` to every region of `dests`, 1 to 8 as long as it, and return.

        `notify(read_err, write_err, context)` is called on the reactor when all is done: read_err
        is 0 or 1, bit i of write_err is set when dests[i] failed. Nothing is flushed: as in the
        kernel, durability is the caller's. From any thread.

        Raises UsageError for regions that are past the end of a device, off its blocks, of
        different lengths, overlapping, or read-only; ClosedError after `destroy`.
        """
        if self._destroyed:
            raise ClosedError("the client was destroyed")
        check_copy(source, dests)
        if flags or not 0 < source[2] <= self.sub_job_sectors:
            if source[2] > self.sub_job_sectors:
                check_sliceable((source, *dests), self.sub_job_sectors)
            return self._begin_slices(source, dests, notify, context, flags)
        job = CopyJob(self, source, dests, notify, context)
        self._queue(job)
        return job

    def copy_chunk(
        self,
        source: IoRegion,
        dests: Sequence[IoRegion],
        notify: Notify,
        context: Any = None,
        flags: int = 0,
    ) -> CopyJob:
        """Copy without the checks of `copy`: for targets, whose table was checked instead.

        As in the kernel, what is past the end of a device is an error of the job.
        """
        if self._destroyed:
            raise ClosedError("the client was destroyed")
        if flags or not 0 < source[2] <= self.sub_job_sectors:
            return self._begin_slices(source, dests, notify, context, flags)
        job = CopyJob(self, source, dests, notify, context)
        self._queue(job)
        return job

    def copy_list(
        self,
        moves: Iterable[Move],
        dest: Device,
        *,
        unit: int,
        notify: Notify | None = None,
        context: Any = None,
    ) -> ListJob:
        """Start to do `moves` to `dest`, any number of them, in any order; return immediately.

        They must not overlap. Neighbours, at most half of the client's pages of them, are read
        together and written together. Every move is some blocks of `unit` sectors, of which the
        last may be a short one: what could not be read is tried again unit by unit. Otherwise as
        `copy`; what `moves` raises ends the job and is in its `failure`.
        """
        if self._destroyed:
            raise ClosedError("the client was destroyed")
        limit = window_sectors(dest, self.sub_job_sectors, self.pool.total)
        job = ListJob(self, moves, dest, unit, limit, notify, context)
        self._work.begin(job)
        return job

    def zero(
        self,
        dests: Sequence[IoRegion],
        flags: int = 0,
        notify: Notify | None = None,
        context: Any = None,
    ) -> CopyJob:
        """Start to make every region of `dests` read as zeroes; takes no pages, else as `copy`."""
        if self._destroyed:
            raise ClosedError("the client was destroyed")
        check_dests(dests)
        return self._begin_slices(dests[0], dests, notify, context, flags, zeroes=True)

    def prepare_callback(self, notify: Notify, context: Any = None) -> PreparedCallback:
        """Return a callback to be fired later, in turn with the callbacks of the client's jobs.

        It counts as a job: `destroy` waits for it. Only on the reactor's thread.
        """
        if self._destroyed:
            raise ClosedError("the client was destroyed")
        prepared = PreparedCallback(self.reactor, self._work, notify, context)
        self._work.jobs += 1
        self._work.unfired[prepared] = True
        return prepared

    def cancel(self, job: Job) -> bool:
        if job.done or job.cancelled:
            return False
        self._work.cancel(job)
        return True

    def statistics(self) -> ClientStatistics:
        """Return a snapshot of the client."""
        return ClientStatistics(
            pages=self.pool.total,
            pages_free=self.pool.free,
            jobs=self._work.jobs,
            jobs_done=self._work.jobs_done,
            waiting=self._work.waiting,
            in_flight=self._work.in_flight,
            merged=self._work.merged,
            sectors_read=self._work.totals.sectors_read,
            sectors_written=self._work.totals.sectors_written,
        )

    def destroy(self, timeout: float = 300.0) -> None:
        """Wait for every job and its callback, then free the pages. From any thread.

        Raises UsageError inside a callback (the kernel would deadlock there), and DeadlineError
        when no job ended for `timeout` seconds; the client then still exists, but takes no new
        jobs.
        """
        if not self.reactor.is_mine:
            self._destroy_from_outside(timeout)
            return
        if self.reactor.in_callback:
            raise UsageError("a client cannot be destroyed inside a callback of its reactor")
        self._destroyed = True
        self._work.resume()
        while self._work.jobs:
            before = self._work.jobs_done
            self.reactor.run_until(
                lambda before=before: self._work.jobs_done != before,  # type: ignore[misc]
                timeout,
                f"any of the {self._work.jobs} jobs of a client that is destroyed",
            )
        self._free()

    def _begin_slices(
        self,
        source: IoRegion,
        dests: Sequence[IoRegion],
        notify: Notify | None,
        context: Any,
        flags: int,
        *,
        zeroes: bool = False,
    ) -> CopyJob:
        job = SlicedCopy(
            self, source, dests, notify, context, int(flags), self.sub_job_sectors, zeroes=zeroes
        )
        self._work.begin(job)
        return job

    def _destroy_from_outside(self, timeout: float) -> None:
        self._destroyed = True
        idle = threading.Event()
        self.reactor.call_soon_threadsafe(lambda: self._work.when_idle(idle.set))
        if not idle.wait(timeout):
            raise DeadlineError(f"waited {timeout:g} s for the jobs of a client that is destroyed")
        self._free()

    def _free(self) -> None:
        if not self._freed:
            self._freed = True
            self.reactor.unpin(self.pool.memory)
            self.pool.close()
            if self._owns_reactor:
                self.reactor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Destroy it; where an exception ends the block, cancel what has not begun, and keep it."""
        if error is None:
            self.destroy()
            return
        try:
            self._give_up()
            self.destroy()
        except DmcopyError as late:
            error.add_note(f"Then its client could not be destroyed: {late}.")

    def _give_up(self) -> None:
        if self.reactor.is_mine:
            self._work.give_up()
        else:
            self.reactor.call_soon_threadsafe(self._work.give_up)


def _sub_job_sectors(wanted: int | None, num_pages: int) -> int:
    """Return the longest request for a pool: whole pages, and never more than the pool."""
    pool = num_pages * PAGE_SECTORS
    if wanted is None:
        quarter = pool // 4 // PAGE_SECTORS * PAGE_SECTORS
        return min(SUB_JOB_SECTORS, max(quarter, PAGE_SECTORS))
    if not PAGE_SECTORS <= wanted <= MAX_SUB_JOB_SECTORS or wanted % PAGE_SECTORS:
        raise UsageError(
            f"a sub-job is {PAGE_SECTORS} to {MAX_SUB_JOB_SECTORS} sectors in whole pages, "
            f"not {wanted}"
        )
    return min(wanted, pool)
