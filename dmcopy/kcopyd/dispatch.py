"""The way of each request: waiting, in order, for pages; in flight; done.

Rules taken from the kernel (drivers/md/dm-kcopyd.c, 6.1): a job longer than a sub-job is cut into
slices, eight under way together, started in ascending order; work that waits for pages is not
overtaken; after an error no new slice of the job starts unless IGNORE_ERROR, slices already cut are
copied; pages go back before the callback, and the job counts until its callback has returned.

What waits is `Work`, whatever the job: a small plain job itself, a slice, a window of a list. A job
cuts itself into work and books what became of it; only the order is kept here.

Whatever raises here ends the job that it was about, once, with an error; see `Job.failure`. Where
a user's thread comes in from outside of the reactor (`begin`, `cancel`), a signal may raise after
any call: there each call leaves a state that the rest can be done without, or the shield is up.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from threading import get_ident

from dmcopy.io.reactor import Reactor
from dmcopy.io.request import cut
from dmcopy.kcopyd.job import Job, Totals, Work
from dmcopy.kcopyd.merged import MergedCopy, neighbours
from dmcopy.kcopyd.pages import PagePool
from dmcopy.kcopyd.throttle import SLEEP_SECONDS, Throttle
from dmcopy.units import PAGE_SIZE

SPLIT_COUNT = 8


class Dispatcher:
    """Moves the jobs of one client. All but `queue` and `begin` is for the reactor's thread."""

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
        self._waiting: deque[Work] = deque()
        self._pump_due = False
        # Bound once: making a bound method costs as much as calling it.
        self._on_done = self._done
        self._memory = pool.memory
        self.in_flight = 0
        self.jobs = 0
        self.jobs_done = 0
        self.merged = 0
        self.totals = Totals()
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

    def queue(self, work: Work) -> None:
        """Queue a whole job that is one request.

        From any thread: elsewhere than on the reactor's, it is queued in the reactor's next step.
        """
        if get_ident() != self._reactor.thread:
            self._reactor.call_soon_threadsafe(partial(self.queue, work))
            return
        self.jobs += 1  # no call from here on, until it is in the queue
        work.memory = self._memory
        work.notify = self._on_done
        self._waiting.append(work)
        if not self._pump_due:
            self._want_pump()

    def begin(self, job: Job) -> None:
        """Queue the first work of a job. From any thread, as `queue`."""
        if get_ident() != self._reactor.thread:
            self._reactor.call_soon_threadsafe(partial(self.begin, job))
            return
        with self._reactor.shield:
            self.jobs += 1
            for _ in range(SPLIT_COUNT):
                self._next(job)
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
        """Have a look at the queue: the thread that began a job may have been interrupted there."""
        self._reactor.call_before_io(self._pump)

    def cancel(self, job: Job) -> None:
        """Drop what waits of a job; the job ends when nothing of it is in flight."""
        with self._reactor.shield:
            self._cancel(job)

    def _cancel(self, job: Job) -> None:
        job.cancelled = True
        self._drop(job)

    def _next(self, job: Job) -> None:
        """Queue the job's next work, if there is some and nothing forbids it."""
        if not job.has_more or not job.may_go_on:
            return
        if self._given_up:
            job.cancelled = True
            return
        work = job.cut()
        if work is not None:
            job.active += 1
            work.memory = self._memory
            work.notify = self._on_done
            self._waiting.append(work)
            self._want_pump()

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

    def _refuse(self, work: Work, error: BaseException) -> None:
        """End the job of the first that waits, which could not even be started."""
        self._break_off(work.job, error)
        self._drop(work.job)

    def _drop(self, job: Job) -> None:
        """Drop what waits of a job, which ends when nothing is in flight."""
        dropped = sum(work.job is job for work in self._waiting)
        if dropped:
            self._waiting = deque(work for work in self._waiting if work.job is not job)
            job.active -= dropped
            job.dropped()
        if not job.active:
            self._finish_soon(job)

    def _start(self, work: Work, others: int = 0) -> bool:
        """Start the first that waits, or what does it with the `others` behind it.

        Returns False when there are too few pages for it.
        """
        if not work.zeroes:
            size = work.bytes
            pages = self._pool.take(size)
            if pages is None:
                return False
            work.pages = pages
            work.extents = cut(pages, 0, size) if size % PAGE_SIZE else pages
        self._waiting.popleft()
        while others:
            self._waiting.popleft()
            others -= 1
        self.in_flight += 1
        if self._throttle is not None:
            self._throttle.in_flight += 1
        try:
            if work.is_plain:
                self._reactor.submit(work)
            else:
                work.start(self._reactor)
        except BaseException as error:
            self._reactor.report(error)
            if work.is_plain:  # a back end of the user's own, say, would not take it
                work.error = errno.EIO
                self._reactor.call_soon(partial(work.notify, work))
        return True

    def _start_merged(self) -> bool:
        """Start the first that waits together with those that begin where it ends, if any do."""
        longest = min(self._longest_bytes, self._pool.free * PAGE_SIZE)
        works = neighbours(self._waiting, longest)
        if len(works) < 2:
            return self._start(self._waiting[0])
        self.merged += len(works)
        return self._start(MergedCopy(works, self._memory, self._on_done), len(works) - 1)

    def _is_held_back(self, work: Work, throttle: Throttle) -> bool:
        """Ask the throttle; when it says no, come back later."""
        if not throttle.must_wait(self._reactor.time(), work.slept):
            return False
        work.slept += 1
        self._pump_due = True
        self._reactor.call_later(SLEEP_SECONDS, self._pump)
        return True

    def _done(self, work: Work) -> None:
        """Take its pages back, and book it, or each of the neighbours that it did."""
        self.in_flight -= 1
        if work.pages:
            self._pool.give(work.pages)
        if self._waiting and not self._pump_due:
            self._want_pump()
        if self._throttle is not None:
            self._account(self._throttle, work)
        if not work.merged:
            self._book(work)
        elif work.error or work.write_errors:
            self._take_apart(work.merged)
        else:
            for one in work.merged:
                self._book(one)

    def _account(self, throttle: Throttle, work: Work) -> None:
        """Tell the throttle that it ended; what that raises ends the jobs that it was for."""
        try:
            throttle.account(self._reactor.time())
        except BaseException as error:
            for one in work.merged or [work]:
                self._break_off(one.job, error)
        throttle.in_flight -= 1

    def _take_apart(self, works: Sequence[Work]) -> None:
        """Have each of some neighbours tell by itself which failed; what is cancelled ends."""
        for work in works:
            work.alone = True
        self._put_back(works)
        for work in works:
            if not work.job.may_go_on:
                self._drop(work.job)

    def _book(self, work: Work) -> None:
        """Have the job book what was done of it, and continue the job or end it."""
        try:
            job = work.book(self.totals)
            if job.has_more or work.again:
                self._continue(job, work)
        except BaseException as error:
            job = work.job
            self._break_off(job, error)
        job.active -= 1
        if not job.active:
            job.finish()
            # As in the kernel, after the callback: destroy() waits for that, too.
            self.jobs -= 1  # job_ended() in three lines, for all small jobs
            self.jobs_done += 1
            if self.on_idle is not None and not self.jobs:
                self.on_idle()

    def _continue(self, job: Job, work: Work) -> None:
        """Queue the retries of work that ended, or else the job's next piece."""
        if work.again:
            job.active += len(work.again)
            self._put_back(work.again)
        self._next(job)

    def _put_back(self, works: Sequence[Work]) -> None:
        """Queue first what is to be tried again: it had waited its turn, and is not overtaken."""
        for work in reversed(works):
            work.memory = self._memory
            work.notify = self._on_done
            self._waiting.appendleft(work)
        self._want_pump()

    def _break_off(self, job: Job, error: BaseException) -> None:
        """Let a job end, when nothing of it is in flight, because of what was raised."""
        job.break_off(error)
        self._reactor.report(error)

    def _finish(self, job: Job) -> None:
        if not job.done:
            job.finish()
            self.job_ended()

    def _finish_soon(self, job: Job) -> None:
        """End a job of which nothing is under way, but never inside copy() or cancel()."""
        self._reactor.call_soon(partial(self._finish, job))
