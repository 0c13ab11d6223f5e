"""The way of each sub-job: waiting, in order, for pages; in flight; done.

Rules taken from the kernel (drivers/md/dm-kcopyd.c, 6.1): a job longer than a sub-job is cut into
slices, eight under way at once, started in ascending order; who waits for pages is not overtaken;
after an error no new slice of the job starts unless IGNORE_ERROR, slices already cut go on; pages
go back before the callback, and the job counts until its callback has returned.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable

from dmcopy.io.reactor import Reactor
from dmcopy.io.request import Extent
from dmcopy.kcopyd.job import CopyJob, Flag
from dmcopy.kcopyd.pages import PagePool
from dmcopy.kcopyd.subjob import MergedCopy, Staged, SubJob, WriteSequence, cut
from dmcopy.kcopyd.throttle import SLEEP_SECONDS, Throttle
from dmcopy.units import PAGE_SIZE

SPLIT_COUNT = 8
ZERO_SLICE_SECTORS = 32768
"""Zeroing needs no pages, so its slices are longer: 16 MiB (the kernel's are sub-jobs too)."""

_IGNORE_ERROR, _WRITE_SEQ = int(Flag.IGNORE_ERROR), int(Flag.WRITE_SEQ)


class Dispatcher:
    """Moves the sub-jobs of one client. Everything here runs on the reactor's thread."""

    def __init__(
        self,
        reactor: Reactor,
        pool: PagePool,
        throttle: Throttle,
        sub_job_sectors: int,
        depth: int,
    ) -> None:
        self._reactor = reactor
        self._pool = pool
        self._throttle = throttle
        self._sub_job_sectors = sub_job_sectors
        self._depth = depth
        self._waiting: deque[SubJob] = deque()
        self._pump_due = False
        # Bound once: making a bound method costs as much as calling it.
        self._on_done = self._sub_job_done
        self.in_flight = 0
        self.jobs = 0
        self.jobs_done = 0
        self.merged = 0
        self.sectors_read = 0
        self.sectors_written = 0
        self.on_idle: Callable[[], object] | None = None

    @property
    def waiting(self) -> int:
        """How many sub-jobs wait for pages or for their turn."""
        return len(self._waiting)

    def job_ended(self) -> None:
        """Count a job, or a prepared callback, as ended."""
        self.jobs -= 1
        self.jobs_done += 1
        if not self.jobs and self.on_idle is not None:
            self.on_idle()

    def when_idle(self, notify: Callable[[], object]) -> None:
        """Call `notify` as soon as there is no job left."""
        self.on_idle = notify
        if not self.jobs:
            notify()

    def cancel(self, job: CopyJob) -> None:
        """Drop what waits of a job; the job ends when nothing of it is in flight."""
        job.cancelled = True
        dropped = [sub for sub in self._waiting if sub.job is job]
        if dropped:
            self._waiting = deque(sub for sub in self._waiting if sub.job is not job)
            job.active -= len(dropped)
            for sub in dropped:
                if sub.alone:  # a merged request that failed may have written some of it
                    job.write_failed(0, sub.dests[0], errno.ECANCELED)
        if not job.active:
            self._reactor.call_soon(lambda: self._finish(job))

    def begin(self, job: CopyJob) -> None:
        """Queue a job: whole, or its first slices."""
        self.jobs += 1
        if job.flags and job.flags & _WRITE_SEQ:
            # The two exclude each other (dm-kcopyd.c, dm_kcopyd_copy).
            job.flags &= ~_IGNORE_ERROR
            job.sequence = WriteSequence(job)
        count = job.dests[0][2]
        if not count:
            self._reactor.call_soon(lambda: self._finish(job))
        elif count <= self._sub_job_sectors:
            job.cursor = count
            job.active = 1
            source = job.source or job.dests[0]
            self._waiting.append(
                SubJob(job, 0, source, job.dests, self._pool.memory, self._on_done)
            )
            if not self._pump_due:
                self._want_pump()
        else:
            for _ in range(SPLIT_COUNT):
                self._next_slice(job)

    def _next_slice(self, job: CopyJob) -> None:
        """Queue the job's next slice, if there is one and nothing forbids it."""
        failed = job.read_err or job.write_err
        if job.cancelled or (failed and not job.flags & _IGNORE_ERROR):
            return
        offset = job.cursor
        count = min(self._slice_sectors(job), job.count - offset)
        if count:
            dests = [dest.slice(offset, count) for dest in job.dests]
            source = job.source.slice(offset, count) if job.source else dests[0]
            sub = SubJob(job, offset, source, dests, self._pool.memory, self._on_done)
            job.cursor += count
            job.active += 1
            self._waiting.append(sub)
            if not self._pump_due:
                self._want_pump()

    def _slice_sectors(self, job: CopyJob) -> int:
        if job.source is None:
            return ZERO_SLICE_SECTORS
        block = max(region.device.logical_block_size for region in (job.source, *job.dests)) >> 9
        return self._sub_job_sectors // block * block

    def _want_pump(self) -> None:
        self._pump_due = True
        self._reactor.call_before_io(self._pump)

    def _pump(self) -> None:
        """Start what waits, in order, as far as pages, depth and throttle allow."""
        self._pump_due = False
        waiting = self._waiting
        while waiting and self.in_flight < self._depth:
            sub = waiting[0]
            if self._throttle.percent < 100 and self._is_held_back(sub):
                return
            merge = len(waiting) > 1 and sub.is_followed_by(waiting[1])
            if not (self._start_merged() if merge else self._start(sub)):
                return

    def _start(self, sub: SubJob) -> bool:
        """Start the first that waits; False when there are too few pages for it."""
        job = sub.job
        if job.source is not None:
            size = sub.bytes
            pages = self._pool.take((size + PAGE_SIZE - 1) // PAGE_SIZE)
            if pages is None:
                return False
            sub.pages = pages
            sub.extents = cut(pages, 0, size) if size % PAGE_SIZE else pages
        self._waiting.popleft()
        self.in_flight += 1
        self._throttle.in_flight += 1
        if job.flags or job.source is None:
            Staged(sub, self._reactor.submit).start()
        else:
            self._reactor.submit(sub)
        return True

    def _start_merged(self) -> bool:
        """Start the first that waits together with those that go on where it ends."""
        parts, size = self._neighbours()
        if not parts:
            return False
        if len(parts) == 1:
            return self._start(parts[0])
        pages = self._pool.take((size + PAGE_SIZE - 1) // PAGE_SIZE)
        assert pages is not None, "neighbours are as many as there are pages for"
        merged = MergedCopy(parts, self._merged_done)
        merged.pages = pages
        merged.extents = cut(pages, 0, size) if size % PAGE_SIZE else pages
        for _ in parts:
            self._waiting.popleft()
        self.in_flight += 1
        self._throttle.in_flight += 1
        self.merged += len(parts)
        self._reactor.submit(merged)
        return True

    def _neighbours(self) -> tuple[list[SubJob], int]:
        """Return the neighbours at the head of the queue that fit in the pages, and their size."""
        limit = min(self._sub_job_sectors << 9, self._pool.free * PAGE_SIZE)
        parts: list[SubJob] = []
        size = 0
        for sub in self._waiting:
            if size + sub.bytes > limit or (parts and not parts[-1].is_followed_by(sub)):
                break
            parts.append(sub)
            size += sub.bytes
        return parts, size

    def _is_held_back(self, sub: SubJob) -> bool:
        """Ask the throttle; when it says no, come back later."""
        if not self._throttle.must_wait(self._reactor.time(), sub.slept):
            return False
        sub.slept += 1
        self._pump_due = True
        self._reactor.call_later(SLEEP_SECONDS, self._pump)
        return True

    def _io_done(self, pages: tuple[Extent, ...]) -> None:
        self.in_flight -= 1
        throttle = self._throttle
        if throttle.percent < 100:
            throttle.account(self._reactor.time())
        throttle.in_flight -= 1
        if pages:
            self._pool.give(pages)
        if self._waiting and not self._pump_due:
            self._want_pump()

    def _merged_done(self, merged: MergedCopy) -> None:
        self._io_done(merged.pages)
        if not merged.error and not merged.write_errors:
            for sub in merged.parts:
                self._settle(sub)
            return
        # Whose sectors failed? Each part tells by itself: first in the queue, so not overtaken.
        for sub in reversed(merged.parts):
            sub.alone = True
            self._waiting.appendleft(sub)
        self._want_pump()

    def _sub_job_done(self, sub: SubJob) -> None:
        self._io_done(sub.pages)
        job = sub.job
        if sub.dests is not job.dests or sub.error or sub.write_errors or job.cancelled:
            self._settle(sub)
            return
        # The whole job in one piece, and all is well: no need to book ranges, job.ok says it all.
        job.active = 0
        self._count(job, sub.source[2])
        self._finish(job)

    def _settle(self, sub: SubJob) -> None:
        """Book a sub-job's outcome, and go on with its job or end it."""
        job = sub.job
        count = sub.source[2]
        if sub.error or sub.write_errors or sub.skipped:
            self._book_failures(sub)
        else:
            self._count(job, count)
            for index in range(len(job.dests)):
                job.record(index, sub.offset, count)
        job.active -= 1
        if job.cursor < job.dests[0][2]:
            self._next_slice(job)
        if not job.active:
            self._finish(job)

    def _count(self, job: CopyJob, sectors: int) -> None:
        self.sectors_written += sectors * len(job.dests)
        if job.source is not None:
            self.sectors_read += sectors

    def _book_failures(self, sub: SubJob) -> None:
        job = sub.job
        if sub.error:
            job.read_failed(sub.source, sub.error)
        elif job.source is not None:
            self.sectors_read += sub.source.count
        for index, error in sub.write_errors.items():
            job.write_failed(index, sub.dests[index], error)
        if sub.skipped or (sub.error and not job.flags & _IGNORE_ERROR):
            return
        for index, dest in enumerate(sub.dests):
            if index not in sub.write_errors:
                job.record(index, sub.offset, dest.count)
                self.sectors_written += dest.count

    def _finish(self, job: CopyJob) -> None:
        if job.done:
            return
        try:
            job.finish()
        finally:
            # As in the kernel, after the callback: whoever waits in destroy() waits for it too.
            self.jobs -= 1
            self.jobs_done += 1
            if self.on_idle is not None and not self.jobs:
                self.on_idle()
