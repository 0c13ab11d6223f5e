"""The reactor: one thread on which every state machine runs, as callbacks, without locks.

A reactor belongs to the thread that made it, and only that thread may `step` it, by waiting for
something. There is no loop to start: `run_until` (or `CopyJob.result`) drives it for as long as it
waits. Other threads may only `call_soon_threadsafe` and `wake`. One on a thread of its own is a
`dmcopy.io.thread.ReactorThread`.

Whatever a callback raises, all that is due with it is called too. An exception goes to
`on_exception`, or else comes out of `step` or `run_until` when the step is over; KeyboardInterrupt,
SystemExit and their like always do. Signals wait until no callback runs (`dmcopy.io.signals`), so
that a Ctrl-C comes out there, too, promptly, and costs no completion.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import threading
from collections.abc import Callable
from typing import Any, Self
from weakref import WeakSet

from dmcopy.errors import ClosedError, DeadlineError, UsageError, limits_told
from dmcopy.io.backend import IoBackend, make_backend
from dmcopy.io.poller import Poller
from dmcopy.io.request import Memory, Request
from dmcopy.io.signals import Shield
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

    Attributes:
        on_exception: is given every `Exception` that a callback raises. None: what the callback of
            a kcopyd job raises is logged, as by asyncio; the rest comes out of `step`, since
            whatever raised there will not continue, and a caller may wait for it.
        shield: for code that, outside of callbacks, must not be interrupted between two changes.
    """

    def __init__(
        self,
        backend: str | IoBackend | Callable[[Poller], IoBackend] | None = None,
        *,
        inline: bool = False,
        stacked: bool = False,
    ) -> None:
        self._poller = Poller()
        try:
            with limits_told():
                if backend is None or isinstance(backend, str):
                    backend = make_backend(backend, self._poller, inline=inline)
                elif callable(backend):
                    backend = backend(self._poller)
        except BaseException:
            self._poller.close()
            raise
        if stacked:
            backend = StackBackend(backend, self.call_soon, self.report)
        self.stacked = stacked
        self.backend = backend
        self.submit: Callable[[Request], None] = backend.submit
        self.time: Callable[[], float] = backend.time
        self._pin, self._unpin = backend.pin, backend.unpin
        self._ready: list[Callable[[], object]] = []
        self._posted: list[Callable[[], object]] = []
        self._before_io: list[Callable[[], object]] = []
        self._timers: list[Timer] = []
        self._order = itertools.count()
        self.thread = threading.get_ident()
        self._stepping = False
        self._closed = False
        self._why_closed = "the reactor is closed"
        self.on_exception: Callable[[Exception], object] | None = None
        self.shield = Shield(self._poller.wake)
        self._raised: list[BaseException] = []
        _reactors.add(self)

    def __repr__(self) -> str:
        return f"<Reactor on {self.backend.name}>"

    @property
    def is_mine(self) -> bool:
        """Whether this is the reactor's own thread."""
        return threading.get_ident() == self.thread

    @property
    def in_callback(self) -> bool:
        """Whether a callback is running right now."""
        return self._stepping

    def call_soon(self, notify: Callable[[], object]) -> None:
        """Call `notify` in the next step. Only from the reactor's thread."""
        self._ready.append(notify)

    def call_before_io(self, notify: Callable[[], object]) -> None:
        """Call `notify` once, right before the next I/O is submitted, as queued I/O needs."""
        self._before_io.append(notify)

    def call_soon_threadsafe(self, notify: Callable[[], object]) -> None:
        """Call `notify` in the next step. From any thread, and from a signal handler.

        Raises ClosedError, also where its own thread closes it meanwhile.
        """
        if self._closed:
            raise ClosedError(self._why_closed)
        self._posted.append(notify)
        try:
            self._poller.wake()
        except (OSError, ValueError):  # no lock: a signal handler could wait for it in vain
            raise ClosedError(self._why_closed) from None

    def call_later(self, delay: float, notify: Callable[[], object]) -> Timer:
        """Call `notify` in `delay` seconds of the reactor's clock."""
        timer = Timer(self.time() + delay, next(self._order), notify)
        heapq.heappush(self._timers, timer)
        return timer

    def pin(self, memory: Memory) -> None:
        """Expect many copies through a memory. Nothing fails where pages cannot be pinned."""
        self._pin(memory)

    def unpin(self, memory: Memory) -> None:
        """Expect no more of them; none may be in flight."""
        self._unpin(memory)

    def watch(self, fd: int, notify: Callable[[int], object], events: int = select.EPOLLIN) -> None:
        """Call `notify(events)` whenever `fd` is readable, or what `events` of epoll(7) say."""
        self._poller.watch(fd, notify, events)

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`, which must still be open."""
        self._poller.unwatch(fd)

    def fileno(self) -> int:
        """A descriptor that is readable when a step would do something: to nest in another loop."""
        return self.backend.fileno()

    def step(self, timeout: float | None = 0) -> None:
        """Call back everything that is due; wait at most `timeout` seconds for I/O if nothing is.

        Raises what a callback raised, see `on_exception`, after all of them were called.
        """
        self._check_thread()
        with self.shield:
            self._step(timeout)

    def run_until(
        self,
        done: Callable[[], Any],
        timeout: float | None = None,
        waiting_for: str = "something",
    ) -> None:
        """Step until `done()` is true; after `timeout`, DeadlineError says what was waited for.

        Raises the exceptions of `step` and of the handlers of signals.
        """
        self._check_thread()
        if done():
            return
        deadline = None if timeout is None else self.time() + timeout
        left = None
        with self.shield:
            while True:
                if deadline is not None and (left := deadline - self.time()) <= 0:
                    raise DeadlineError(f"waited {timeout:g} s for {waiting_for}")
                self._step(left)
                if self.shield.noted:
                    self.shield.deliver()
                if done():
                    return

    def report(self, error: BaseException) -> None:
        """Tell of an error that ended what it was about already; see `on_exception`."""
        try:
            if not isinstance(error, Exception):
                raise error
            (self.on_exception or log_exception)(error)
        except BaseException as raised:
            self._raised.append(raised)

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
        if self._ready or self._posted or self._before_io or self._raised:
            return 0
        return self._next_timer()

    def _check_thread(self) -> None:
        if threading.get_ident() != self.thread:
            raise UsageError("a reactor can be driven only by the thread that made it")

    def _step(self, timeout: float | None) -> None:
        if self._stepping:
            raise UsageError("the reactor is waited for inside one of its own callbacks")
        self._stepping = True
        try:
            if self._ready or self._posted or self._raised:
                self._run_ready()
                timeout = 0  # what was waited for may have happened just now
            while self._before_io:
                self._call(self._before_io.pop())
            if self._timers or self._ready or self._posted or self._raised:
                timeout = self._patience(timeout)
            for request in self.backend.poll(timeout):
                try:
                    request.notify(request)  # type: ignore[misc]
                except BaseException as error:
                    self.catch(error)
            if self._poller.fired:
                self._call_watchers()
            if self._timers:
                self._run_timers()
        finally:
            self._stepping = False
        if self._raised:
            self._raise()

    def _next_timer(self) -> float | None:
        while self._timers and self._timers[0].cancelled:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0].when - self.time()) if self._timers else None

    def _patience(self, timeout: float | None) -> float | None:
        if self._ready or self._posted or self._raised:
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

    def _call_watchers(self) -> None:
        fired, self._poller.fired = self._poller.fired, []
        for notify in fired:
            self._call(notify)

    def _call(self, notify: Callable[[], object]) -> None:
        try:
            notify()
        except BaseException as error:
            self.catch(error)

    def catch(self, error: BaseException) -> None:
        """Take what a callback raised: whatever it was about will not continue by itself."""
        if self.on_exception is None:
            self._raised.append(error)
        else:
            self.report(error)

    def _raise(self) -> None:
        """Raise what the callbacks of a step raised: of several the one that is no error first."""
        raised, self._raised = self._raised, []
        raised.sort(key=lambda error: isinstance(error, Exception))
        for error in raised[1:]:
            log_exception(error)
        raise raised[0]

    def _disown(self) -> None:
        """Be of no use in a child process: what is in flight is the parent's."""
        self.thread = 0
        self._closed = True
        self._why_closed = "the reactor belongs to the process that forked this one: make another"


_reactors: WeakSet[Reactor] = WeakSet()


def _after_fork() -> None:
    for reactor in _reactors:
        reactor._disown()


os.register_at_fork(after_in_child=_after_fork)


def log_exception(error: BaseException) -> None:
    """Log what a callback raised: what it was about has ended, and the rest continues."""
    import logging  # costs a quarter of what a short command takes to start

    logging.getLogger("dmcopy").error("a callback on the reactor raised", exc_info=error)
