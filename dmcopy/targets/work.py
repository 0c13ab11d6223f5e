"""Work that waits for I/O, written as coroutines: the kernel's workers, without their threads.

    async def work() -> None:
        errors = await Requests(reactor, [Io(...), Io(...)])

    worker = Worker(reactor, work)
    worker.wake()

There is no asyncio in it: what a coroutine awaits is only ever the end of requests, or the calls of
a callback, the last of which continues it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any, TypeVar

from dmcopy.io.reactor import Reactor
from dmcopy.io.request import Io

TIMEOUT_SECONDS = 60.0
_T = TypeVar("_T")
Routine = Coroutine["Calls", None, _T]


class Calls:
    """A callback for `count` calls; awaiting it returns what it was called with each time."""

    def __init__(self, count: int = 1) -> None:
        self._count = count
        self._calls: list[tuple[Any, ...]] = []
        self._waiter: Callable[[], object] | None = None

    def __call__(self, *args: Any) -> None:
        self._calls.append(args)
        if len(self._calls) == self._count and self._waiter is not None:
            self._waiter()

    def __await__(self) -> Generator[Calls, None, list[tuple[Any, ...]]]:
        if len(self._calls) < self._count:
            yield self
        return self._calls

    def call_at_end(self, notify: Callable[[], object]) -> None:
        """Have `notify` called with the last call, which has not come yet."""
        self._waiter = notify


class Requests:
    """Requests that were submitted together; awaiting them returns the errno of each, or 0."""

    def __init__(self, reactor: Reactor, requests: Sequence[Io]) -> None:
        self._requests = requests
        self._ends = Calls(len(requests))
        for request in requests:
            request.notify = self._ends
            reactor.submit(request)

    def __await__(self) -> Generator[Calls, None, list[int]]:
        yield from self._ends.__await__()
        return [request.error for request in self._requests]


class Worker:
    """Runs `work` once for any number of `wake` calls before it begins, and never twice at a time.

    As a work item of a kernel work queue: to wake it while it runs lets it run once more. What the
    work raises is the reactor's to report, and the next `wake` begins anew.
    """

    def __init__(self, reactor: Reactor, work: Callable[[], Routine[None]]) -> None:
        self._reactor = reactor
        self._work = work
        self._woken = False
        self._running = False

    @property
    def idle(self) -> bool:
        """Whether it neither runs nor is to run."""
        return not (self._woken or self._running)

    def wake(self) -> None:
        """Let it run, in the next step of the reactor or when the run under way has ended."""
        if not self._woken:
            self._woken = True
            if not self._running:
                self._reactor.call_soon(self._begin)

    def _begin(self) -> None:
        self._woken = False
        self._running = True
        proceed(self._work(), self._ended, self._failed)

    def _ended(self, _result: object = None) -> None:
        self._running = False
        if self._woken:
            self._reactor.call_soon(self._begin)

    def _failed(self, error: Exception) -> None:
        self._ended()
        raise error


def wait_for(reactor: Reactor, work: Routine[_T], waiting_for: str) -> _T:
    """Run a coroutine to its end, and the reactor meanwhile; outside of callbacks only.

    Raises the coroutine's exceptions, and DeadlineError after `TIMEOUT_SECONDS`.
    """
    results: list[_T] = []
    errors: list[Exception] = []
    proceed(work, results.append, errors.append)
    reactor.run_until(lambda: results or errors, TIMEOUT_SECONDS, waiting_for)
    if errors:
        raise errors[0]
    return results[0]


def proceed(
    work: Routine[_T], ended: Callable[[_T], Any], failed: Callable[[Exception], object]
) -> None:
    """Begin or continue a coroutine; call one of the two when it is at its end, perhaps now."""
    try:
        waiting_for = work.send(None)
    except StopIteration as stop:
        ended(stop.value)
    except Exception as error:
        failed(error)
    else:
        waiting_for.call_at_end(lambda: proceed(work, ended, failed))
