"""The reactor: one thread on which every state machine runs, as callbacks, without locks.

A reactor belongs to the thread that made it, and only that thread may `step` it, by waiting for
something. There is no loop to start: `run_until` (or `CopyJob.result`) drives it for as long as it
waits. Other threads may only `call_soon_threadsafe` and `wake`. To have a reactor in the
background, make it with `background()`.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

from dmcopy.errors import ClosedError, DeadlineError, UsageError
from dmcopy.io.backend import IoBackend, make_backend
from dmcopy.io.poller import Poller
from dmcopy.io.request import Request
from dmcopy.io.stacked import StackBackend


class Timer:
    """A callback that is due at `when` on the reactor's clock; `cancel` it, or let it come."""

    __slots__ = ("_order", "cancelled", "notify", "when")

    def __init__(self, when: float, order: int, notify: Callable[[], object]) -> None:
        self.when = when
        self.notify = notify
        self.cancelled = False
        self._order = order

    def cancel(self) -> None:
        """Let it not come; no harm when it already has."""
        self.cancelled = True

    def __lt__(self, other: Timer) -> bool:
        return (self.when, self._order) < (other.when, other._order)


class Reactor:
    """Callbacks, timers, descriptors and I/O on one thread.

    `backend`: 'uring' or 'threads', None for `$DMCOPY_IO` or the best that works, an object such as
    a `SimulatedBackend`, or what makes one that waits by a poller. `inline`: see
    `dmcopy.io.backend.make_backend`. `stacked`: there are devices that map their I/O to others, see
    `dmcopy.io.stacked`.
    Raises UsageError or MissingError as `make_backend` does.
    """

    def __init__(
        self,
        backend: str | IoBackend | Callable[[Poller], IoBackend] | None = None,
        *,
        inline: bool = False,
        stacked: bool = False,
    ) -> None:
        self._poller = Poller()
        if backend is None or isinstance(backend, str):
            backend = make_backend(backend, self._poller, inline=inline)
        elif callable(backend):
            backend = backend(self._poller)
        if stacked:
            backend = StackBackend(backend)
        self.stacked = stacked
        self.backend = backend
        self.submit: Callable[[Request], None] = backend.submit
        self.time: Callable[[], float] = backend.time
        self._ready: list[Callable[[], object]] = []
        self._posted: list[Callable[[], object]] = []
        self._before_io: list[Callable[[], object]] = []
        self._timers: list[Timer] = []
        self._order = itertools.count()
        self.thread = threading.get_ident()
        self._stepping = False
        self._closed = False
        self.on_exception: Callable[[BaseException], object] = _log_exception

    def __repr__(self) -> str:
        return f"<Reactor on {self.backend.name}>"

    @property
    def is_mine(self) -> bool:
        """Whether this is the reactor's own thread."""
        return threading.get_ident() == self.thread

    @property
    def in_callback(self) -> bool:
        """Whether the reactor is calling somebody back right now."""
        return self._stepping

    def call_soon(self, notify: Callable[[], object]) -> None:
        """Call `notify` in the next step. Only from the reactor's thread."""
        self._ready.append(notify)

    def call_before_io(self, notify: Callable[[], object]) -> None:
        """Call `notify` once, right before the next I/O is submitted: for who queues requests."""
        self._before_io.append(notify)

    def call_soon_threadsafe(self, notify: Callable[[], object]) -> None:
        """Call `notify` in the next step. From any thread, and from a signal handler."""
        if self._closed:
            raise ClosedError("the reactor is closed")
        self._posted.append(notify)
        self._poller.wake()

    def call_later(self, delay: float, notify: Callable[[], object]) -> Timer:
        """Call `notify` in `delay` seconds of the reactor's clock."""
        timer = Timer(self.time() + delay, next(self._order), notify)
        heapq.heappush(self._timers, timer)
        return timer

    def watch(self, fd: int, notify: Callable[[int], object]) -> None:
        """Call `notify(events)` whenever `fd` is readable."""
        self._poller.watch(fd, notify)

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`, which must still be open."""
        self._poller.unwatch(fd)

    def fileno(self) -> int:
        """A descriptor that is readable when a step would do something: to nest in another loop."""
        return self.backend.fileno()

    def step(self, timeout: float | None = 0) -> None:
        """Call back everything that is due; wait at most `timeout` seconds for I/O if nothing is.

        An exception from a callback goes to `on_exception` (which logs it), never out of here.
        """
        if self._stepping:
            raise UsageError("the reactor is waited for inside one of its own callbacks")
        self._stepping = True
        try:
            if self._ready or self._posted:
                self._run_ready()
                timeout = 0  # what was waited for may have happened just now
            while self._before_io:
                self._call(self._before_io.pop())
            if self._timers or self._ready or self._posted:
                timeout = self._patience(timeout)
            for request in self.backend.poll(timeout):
                try:
                    request.notify(request)  # type: ignore[misc]
                except Exception as error:
                    self.on_exception(error)
            if self._timers:
                self._run_timers()
        finally:
            self._stepping = False

    def run_until(
        self,
        done: Callable[[], Any],
        timeout: float | None = None,
        waiting_for: str = "something",
    ) -> None:
        """Step until `done()` is true; after `timeout`, DeadlineError says what was waited for."""
        if not self.is_mine:
            raise UsageError("a reactor can be driven only by the thread that made it")
        if timeout is None:
            while not done():
                self.step(None)
            return
        deadline = self.time() + timeout
        while not done():
            left = deadline - self.time()
            if left <= 0:
                raise DeadlineError(f"waited {timeout:g} s for {waiting_for}")
            self.step(left)

    def close(self) -> None:
        """Release the back end. What is in flight must have ended."""
        if not self._closed:
            self._closed = True
            self.backend.close()
            self._poller.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def next_due(self) -> float | None:
        """Return in how many seconds a step is due whatever the I/O does; None: only for I/O."""
        return 0 if self._ready or self._posted or self._before_io else self._next_timer()

    def _next_timer(self) -> float | None:
        while self._timers and self._timers[0].cancelled:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0].when - self.time()) if self._timers else None

    def _patience(self, timeout: float | None) -> float | None:
        if self._ready or self._posted:
            return 0
        due = self._next_timer()
        if due is None:
            return timeout
        return due if timeout is None else min(due, timeout)

    def _run_ready(self) -> None:
        if self._posted:
            posted, self._posted = self._posted, []
            self._ready += posted
        ready, self._ready = self._ready, []
        for notify in ready:
            self._call(notify)

    def _run_timers(self) -> None:
        now = self.time()
        while self._timers and self._timers[0].when <= now:
            timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                self._call(timer.notify)

    def _call(self, notify: Callable[[], object]) -> None:
        try:
            notify()
        except Exception as error:
            self.on_exception(error)


@contextlib.contextmanager
def background(backend: str | None = None) -> Iterator[Reactor]:
    """Run a reactor in a thread of its own, until the block ends; I/O must have ended by then."""
    ready: list[Reactor | BaseException] = []
    started, stop = threading.Event(), threading.Event()

    def run() -> None:
        try:
            reactor = Reactor(backend)
        except BaseException as error:
            ready.append(error)
            started.set()
            return
        ready.append(reactor)
        started.set()
        with reactor:
            reactor.run_until(stop.is_set)

    thread = threading.Thread(target=run, name="dmcopy-reactor", daemon=True)
    thread.start()
    started.wait()
    reactor = ready[0]
    if isinstance(reactor, BaseException):
        raise reactor
    try:
        yield reactor
    finally:
        stop.set()
        reactor.call_soon_threadsafe(lambda: None)
        thread.join()


def _log_exception(error: BaseException) -> None:
    import logging  # costs a quarter of what a short command takes to start

    logging.getLogger("dmcopy").error("a callback on the reactor raised", exc_info=error)
