"""Work done ahead of its turn, on a few threads: a device answers several reads side by side.

The areas of a store with small chunks are small and far apart, so reading one after the other is
nothing but waiting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from functools import partial
from queue import SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from dmcopy.thread import Threads

if TYPE_CHECKING:
    from concurrent.futures import Future

THREADS: Final = 4
DEPTH: Final = 2 * THREADS
ALONE: Final = 2
"""How many are done one by one: most stores are short, and nothing is behind their end."""
QUICK_SECONDS: Final = 0.0002
"""As long as one takes no longer, all are: to hand it to a thread and back costs as much."""

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def ahead(work: Callable[[_In], _Out], things: Iterable[_In]) -> Generator[_Out]:
    """Yield `work(thing)` for all things, in order, while the next `DEPTH` are being done.

    What `work` raises is raised in its turn. The threads end with the iterator: close it.
    """
    left = iter(things)
    seconds = 0.0
    for count, thing in enumerate(left, 1):
        began = perf_counter()
        done = work(thing)
        seconds += perf_counter() - began
        yield done
        if count >= ALONE and seconds > count * QUICK_SECONDS:
            break
    else:
        return

    turns: deque[Future[_Out]] = deque()
    with _Pool() as threads:
        try:
            for thing in left:
                turns.append(threads.submit(partial(work, thing)))
                if len(turns) == DEPTH:
                    yield turns.popleft().result()
            while turns:
                yield turns.popleft().result()
        finally:
            for turn in turns:
                turn.cancel()


class _Pool:
    """Up to `THREADS` that do what is submitted; where the system gives none, `submit` does it.

    An executor of concurrent.futures waits for ever for a thread that dies before it begins.
    """

    def __init__(self) -> None:
        self._todo: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = Threads(THREADS, "dmcopy-ahead")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for _thread in self._threads:
            self._todo.put(None)
        for thread in self._threads:
            thread.join()

    def submit(self, call: Callable[[], _Out]) -> Future[_Out]:
        """Have it done, and return where its result comes."""
        from concurrent.futures import Future  # costs milliseconds, and a short store none

        if len(self._threads) < self._threads.limit:
            self._threads.begin_one(self._work)
        future: Future[_Out] = Future()
        if self._threads:
            self._todo.put((future, call))
        else:
            _do(future, call)
        return future

    def _work(self) -> None:
        while (task := self._todo.get()) is not None:
            _do(*task)


def _do(future: Future[_Out], call: Callable[[], _Out]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
