"""The way of each request: waiting, in order, for pages; in flight; done.

Rules taken from the kernel (drivers/md/dm-kcopyd.c, 6.1): a job longer than a sub-job is cut into
slices, eight under way together, started in ascending order; work that waits for pages is not
overtaken; after an error no new slice of the job starts unless IGNORE_ERROR, slices already cut are
copied; pages go back before the callback, and the job counts until its callback has returned.

Whatever raises here ends the job that it was about, once, with an error; see `Job.failure`. Where
a user's thread comes in from outside of the reactor (`begin`, `cancel`), a signal may raise after
any call: there each call leaves a state that the rest can be done without, or the shield is up.

Three kinds wait in one queue: small plain jobs, each its own request; the windows of lists; and the
slices of all others.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from functools import partial
from threading import get_ident

from dmcopy.io.reactor import Reactor
from dmcopy.io.request import CopyIo, Extent
from dmcopy.kcopyd.job import CopyJob, Flag, Job
from dmcopy.kcopyd.listjob import ListJob, Window
from dmcopy.kcopyd.pages import PagePool
from dmcopy.kcopyd.subjob import MergedCopy, Staged, SubJob, WriteSequence, cut
from dmcopy.kcopyd.throttle import SLEEP_SECONDS, Throttle
from dmcopy.units import PAGE_SIZE

SPLIT_COUNT = 8
ZERO_SLICE_SECTORS = 32768
"""Zeroing needs no pages, so its slices are longer: 16 MiB (the kernel's are sub-jobs too)."""

_Queued = CopyJob | SubJob | Window
_IGNORE_ERROR, _WRITE_SEQ = int(Flag.IGNORE_ERROR), int(Flag.WRITE_SEQ)


class Dispatcher:
    """Moves the jobs of one client. All but `begin` is called on the reactor's thread."""

    def __init__(
        self,
        reactor: Reactor,
        pool: PagePool,
        throttle: Throttle | None,
        sub_job_sectors: int,
        depth: int,
    ) -> None:
        self._reactor = reactor
        self._pool = pool
        self._throttle = throttle
        self._longest_bytes = sub_job_sectors << 9
        self._depth = depth
        self._waiting: deque[_Queued] = deque()
        self._pump_due = False
        # Bound once: making a bound method costs as much as calling it.
        self._on_job_done = self._job_done
        self.in_flight = 0
        self.jobs = 0
        self.jobs_done = 0
        self.merged = 0
        self.sectors_read = 0
        self.sectors_written = 0
        self.on_idle: Callable[[], object] | None = None
        self.unfired: dict[object, bool] = {}
        """The prepared callbacks: the code that pops one fires it, or gives it up."""
        self._given_up = False

    @property
    def waiting(self) -> int:
        """How many requests wait for pages or for their turn."""
        return len(self._waiting)

    def job_ended(self) -> None:
        """Count a job, or a prepared callback, as ended."""
        self.jobs -= 1
        self.jobs_done += 1
        if self.on_idle is not None and not self.jobs:
            self.on_idle()

    def when_idle(self, notify: Callable[[], object]) -> None:
        """Call `notify` as soon as there is no job left."""
        self.on_idle = notify
        if not self.jobs:
            notify()

    def begin(self, job: CopyJob) -> None:
        """Queue a job: itself, when it is small and plain, or else its first slices.

        From any thread: elsewhere than on the reactor's, it is queued in the reactor's next step.
        """
        if get_ident() != self._reactor.thread:
            self._reactor.call_soon_threadsafe(partial(self.begin, job))
            return
        if job.flags or job.zeroes or not 0 < job.bytes <= self._longest_bytes:
            with self._reactor.shield:
                self.jobs += 1
                self._begin_slices(job)
            return
        self.jobs += 1  # no call from here on, until it is in the queue
        job.memory = self._pool.memory
        job.notify = self._on_job_done
        job.active = 1
        self._waiting.append(job)
        if not self._pump_due:
            self._want_pump()

    def begin_list(self, job: ListJob) -> None:
        """Queue the first windows of a list. From any thread."""
        if not self._reactor.is_mine:
            self._reactor.call_soon_threadsafe(lambda: self.begin_list(job))
            return
        with self._reactor.shield:
            self.jobs += 1
            for _ in range(SPLIT_COUNT):
                self._next_window(job)
            if not job.active:
                self._finish_soon(job)

    def give_up(self) -> None:
        """Cancel all jobs, and wait for no prepared callback that is not fired yet."""
        with self._reactor.shield:
            self._given_up = True
            for job in dict.fromkeys(work.job for work in self._waiting):
                self._cancel(job)
            while self.unfired:
                self.unfired.popitem()
                self.job_ended()

    def resume(self) -> None:
        """Have a look at the queue, should who began a job have been interrupted there."""
        self._reactor.call_before_io(self._pump)

    def cancel(self, job: Job) -> None:
        """Drop what waits of a job; the job ends when nothing of it is in flight."""
        with self._reactor.shield:
            self._cancel(job)

    def _cancel(self, job: Job) -> None:
        job.cancelled = True
        if self._drop(job) and isinstance(job, CopyJob) and job.alone:
            # A merged request that failed may have written some of it.
            job.book_write_failure(0, job.dests[0], errno.ECANCELED)

    def _begin_slices(self, job: CopyJob) -> None:
        if job.flags & _WRITE_SEQ:
            # The two exclude each other (dm-kcopyd.c, dm_kcopyd_copy).
            job.flags &= ~_IGNORE_ERROR
            job.sequence = WriteSequence(job)
        if not job.count:
            self._finish_soon(job)
        for _ in range(SPLIT_COUNT):
            self._next_slice(job)

    def _next_slice(self, job: CopyJob) -> None:
        """Queue the job's next slice, if there is one and nothing forbids it."""
        if not job.may_go_on:
            return
        offset = job.cursor
        count = min(self._slice_sectors(job), job.count - offset)
        if count and self._given_up:
            job.cancelled = True
        elif count:
            job.cursor += count
            job.active += 1
            memory = self._pool.memory
            self._waiting.append(SubJob(job, offset, count, memory, self._slice_done))
            self._want_pump()

    def _next_window(self, job: ListJob) -> None:
        """Queue the list's next window, if there is one and nothing forbids it."""
        if not job.may_go_on:
            return
        if self._given_up:
            job.cancelled = True
            return
        window = job.next_window(self._pool.memory, self._window_done)
        if window is not None:
            job.active += 1
            self._waiting.append(window)
            self._want_pump()

    def _slice_sectors(self, job: CopyJob) -> int:
        if job.zeroes:
            return ZERO_SLICE_SECTORS
        sectors = self._longest_bytes >> 9
        if job.count <= sectors:
            return sectors
        block = max(region.device.logical_block_size for region in (job.source, *job.dests)) >> 9
        return sectors // block * block

    def _want_pump(self) -> None:
        if not self._pump_due:
            self._reactor.call_before_io(self._pump)
            self._pump_due = True

    def _pump(self) -> None:
        """Start what waits, in order, as far as pages, depth and throttle allow."""
        self._pump_due = False
        while self._waiting and self.in_flight < self._depth:
            waiting = self._waiting
            first = waiting[0]
            try:
                if self._throttle is not None and self._is_held_back(first, self._throttle):
                    return
                _, sector, count = first.source
                # Cheap, and nearly always the answer; _start_merged looks at the rest.
                maybe_merged = len(waiting) > 1 and waiting[1].source[1] == sector + count
                if not (self._start_merged() if maybe_merged else self._start(first)):
                    return
            except BaseException as error:
                self._refuse(first, error)

    def _refuse(self, work: _Queued, error: BaseException) -> None:
        """End the job of the first that waits, which could not even be started."""
        self._break_off(work.job, error)
        self._drop(work.job)

    def _drop(self, job: Job) -> int:
        """Drop what waits of a job, which ends when nothing is in flight. Returns how much."""
        dropped = sum(work.job is job for work in self._waiting)
        if dropped:
            self._waiting = deque(work for work in self._waiting if work.job is not job)
            job.active -= dropped
        if not job.active:
            self._finish_soon(job)
        return dropped

    def _start(self, work: _Queued) -> bool:
        """Start the first that waits; False when there are too few pages for it."""
        if not work.zeroes:
            size = work.bytes
            pages = self._pool.take(size)
            if pages is None:
                return False
            work.pages = pages
            work.extents = cut(pages, 0, size) if size % PAGE_SIZE else pages
        self._waiting.popleft()
        self.in_flight += 1
        if self._throttle is not None:
            self._throttle.in_flight += 1
        if work.is_plain:
            try:
                self._reactor.submit(work)
            except BaseException as error:
                self._not_submitted(work, error)
        else:
            assert isinstance(work, SubJob), "a job or window that waits itself is plain"
            try:
                Staged(work, self._reactor.submit).start()
            except BaseException as error:
                self._reactor.report(error)  # its slice has ended
        return True

    def _start_merged(self) -> bool:
        """Start the first that waits together with those that begin where it ends, if any do."""
        jobs, size = self._neighbours()
        if len(jobs) < 2:
            return self._start(self._waiting[0])
        pages = self._pool.take(size)
        assert pages is not None, "neighbours are as many as there are pages for"
        merged = MergedCopy(jobs, self._merged_done)
        merged.pages = pages
        merged.extents = cut(pages, 0, size) if size % PAGE_SIZE else pages
        for _ in jobs:
            self._waiting.popleft()
        self.in_flight += 1
        if self._throttle is not None:
            self._throttle.in_flight += 1
        self.merged += len(jobs)
        try:
            self._reactor.submit(merged)
        except BaseException as error:
            self._not_submitted(merged, error)
        return True

    def _not_submitted(self, request: CopyIo, error: BaseException) -> None:
        """End a request that a back end of the user's own, say, would not take."""
        request.error = errno.EIO
        self._reactor.call_soon(partial(request.notify, request))
        self._reactor.report(error)

    def _neighbours(self) -> tuple[list[CopyJob], int]:
        """Return the neighbours at the head of the queue that fit in the pages, and their size."""
        limit = min(self._longest_bytes, self._pool.free * PAGE_SIZE)
        jobs: list[CopyJob] = []
        size = 0
        for work in self._waiting:
            if not isinstance(work, CopyJob) or size + work.bytes > limit:
                break
            if jobs and not jobs[-1].is_followed_by(work):
                break
            jobs.append(work)
            size += work.bytes
        return jobs, size

    def _is_held_back(self, work: _Queued, throttle: Throttle) -> bool:
        """Ask the throttle; when it says no, come back later."""
        if not throttle.must_wait(self._reactor.time(), work.slept):
            return False
        work.slept += 1
        self._pump_due = True
        self._reactor.call_later(SLEEP_SECONDS, self._pump)
        return True

    def _io_done(self, pages: tuple[Extent, ...]) -> None:
        """Take a request's pages back. Raises what a throttle raises, when that is done."""
        self.in_flight -= 1
        if pages:
            self._pool.give(pages)
        if self._waiting and not self._pump_due:
            self._want_pump()
        if self._throttle is not None:
            try:
                self._throttle.account(self._reactor.time())
            finally:
                self._throttle.in_flight -= 1

    def _job_done(self, job: CopyJob) -> None:
        """Book a small job, done in one request, and end it."""
        try:
            self._io_done(job.pages)
            if job.error or job.write_errors:
                self._book_failures(job, job, 0)
            else:
                job.is_written = True
                sectors = job.source[2]
                self.sectors_read += sectors
                self.sectors_written += sectors * len(job.dests)
        except BaseException as error:
            self._break_off(job, error)
        job.active = 0
        self._finish(job)

    def _merged_done(self, merged: MergedCopy) -> None:
        try:
            self._io_done(merged.pages)
        except BaseException as error:
            for job in merged.jobs:
                self._break_off(job, error)
                job.active = 0
                self._finish(job)
            return
        if not merged.error and not merged.write_errors:
            self.sectors_read += merged.source[2]
            self.sectors_written += merged.source[2]
            for job in merged.jobs:
                job.is_written = True
                job.active = 0
                self._finish(job)
            return
        # Whose sectors failed? Each job tells by itself: first in the queue, so not overtaken.
        for job in reversed(merged.jobs):
            if job.cancelled:
                self._give_up(job)
            else:
                job.alone = True
                self._waiting.appendleft(job)
        self._want_pump()

    def _give_up(self, job: CopyJob) -> None:
        """End a cancelled job that was part of a merged request which failed after writing some."""
        job.book_write_failure(0, job.dests[0], errno.ECANCELED)
        job.active = 0
        self._finish(job)

    def _slice_done(self, sub: SubJob) -> None:
        """Book a slice, and continue its job or end it."""
        job = sub.job
        try:
            self._io_done(sub.pages)
            if sub.error or sub.write_errors or sub.skipped:
                self._book_failures(job, sub, sub.offset, skipped=sub.skipped)
            else:
                self.sectors_written += sub.source.count * len(job.dests)
                if not job.zeroes:
                    self.sectors_read += sub.source.count
                for index in range(len(job.dests)):
                    job.record(index, sub.offset, sub.source.count)
            self._next_slice(job)
        except BaseException as error:
            self._break_off(job, error)
        job.active -= 1
        if not job.active:
            self._finish(job)

    def _window_done(self, window: Window) -> None:
        """Book a window, and continue its list or end it."""
        job = window.job
        try:
            self._io_done(window.pages)
            if window.error and not window.is_unit:
                # What cannot be read? Each unit tells by itself, first in the queue: not overtaken.
                units = list(window.units())
                job.active += len(units)
                self._waiting.extendleft(reversed(units))
                self._want_pump()
            else:
                job.book(window)
                if not window.error:
                    self.sectors_read += window.sectors
                    self.sectors_written += 0 if window.write_errors else window.sectors
            self._next_window(job)
        except BaseException as error:
            self._break_off(job, error)
        job.active -= 1
        if not job.active:
            self._finish(job)

    def _book_failures(
        self, job: CopyJob, work: CopyIo, offset: int, *, skipped: bool = False
    ) -> None:
        """Book what of a request failed, and which destinations have it all the same."""
        if work.error:
            job.book_read_failure(work.source, work.error)
        elif not job.zeroes:
            self.sectors_read += work.source.count
        for index, error in work.write_errors.items():
            job.book_write_failure(index, work.dests[index], error)
        if skipped or (work.error and not job.flags & _IGNORE_ERROR):
            return
        for index, dest in enumerate(work.dests):
            if index not in work.write_errors:
                job.record(index, offset, dest.count)
                self.sectors_written += dest.count

    def _break_off(self, job: Job, error: BaseException) -> None:
        """Let a job end, when nothing of it is in flight, because of what was raised."""
        job.break_off(error)
        self._reactor.report(error)

    def _finish(self, job: Job) -> None:
        job.finish()
        self.job_ended()  # as in the kernel, after the callback: destroy() waits for that too

    def _finish_soon(self, job: Job) -> None:
        """End a job of which nothing is under way, but never inside copy() or cancel()."""
        self._reactor.call_soon(lambda: None if job.done else self._finish(job))
