"""A reactor on a thread of its own, for programs that do something else."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from dmcopy.closing import Closing
from dmcopy.errors import ClosedError
from dmcopy.io.reactor import Reactor, log_exception
from dmcopy.thread import Thread

_T = TypeVar("_T")
_ENDED = "the reactor's thread has ended"


class ReactorThread(Closing):
    """Runs `reactor`, made as `Reactor` is, until `close` or the end of a `with` block.

    What `call` is given runs there, outside of callbacks, so that it may wait for I/O.
    Everything that is made there must be closed there, and all I/O end, before `close`. Other
    threads may wait for jobs of a client on this reactor. What callbacks raise is logged.
    """

    def __init__(
        self, backend: str | None = None, *, stacked: bool = False, name: str = "dmcopy-reactor"
    ) -> None:
        self._make = partial(Reactor, backend, stacked=stacked)
        self._calls: deque[tuple[Future[Any], Callable[[Reactor], Any]]] = deque()
        self._started: Future[Reactor] = Future()
        self._stopping = False
        self._thread = Thread(self._run, name)
        self._thread.start()
        self.reactor = self._started.result()

    def call(self, what: Callable[[Reactor], _T]) -> _T:
        """Call `what(reactor)` on the thread; return what it returns, raise what it raises."""
        if self._stopping:
            raise ClosedError(_ENDED)
        future: Future[_T] = Future()
        self._calls.append((future, what))
        self.reactor.call_soon_threadsafe(lambda: None)
        return future.result()

    def close(self) -> None:
        if not self._stopping:
            with contextlib.suppress(ClosedError):  # it took this before it was woken, and ended
                self.call(self._stop)
            self._thread.join()

    def _stop(self, reactor: Reactor) -> None:
        del reactor
        self._stopping = True

    def _run(self) -> None:
        try:
            reactor = self._make()
        except BaseException as error:
            self._started.set_exception(error)
            return
        try:
            with reactor:
                reactor.on_exception = log_exception
                self._started.set_result(reactor)
                while not self._stopping:
                    self._step(reactor)
        finally:  # also where there is no memory to wait with, say: then that is told, too
            self._stopping = True
            while self._calls:
                self._calls.popleft()[0].set_exception(ClosedError(_ENDED))

    def _step(self, reactor: Reactor) -> None:
        try:
            reactor.run_until(lambda: self._calls)
        except (KeyboardInterrupt, SystemExit) as error:  # a callback's: others wait here
            log_exception(error)
            return
        future, what = self._calls.popleft()
        try:
            future.set_result(what(reactor))
        except BaseException as error:
            future.set_exception(error)
