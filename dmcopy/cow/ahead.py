"""Work done ahead of its turn, on a few threads: a device answers several reads at once.

The areas of a store with small chunks are small and far apart, so reading one after the other is
nothing but waiting.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from itertools import islice
from queue import SimpleQueue
from typing import Final, Generic, TypeVar

THREADS: Final = 4
DEPTH: Final = 2 * THREADS
ALONE: Final = 2
"""So many are done one by one: most stores are short, and nothing is behind their end."""

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def ahead(work: Callable[[_In], _Out], things: Iterable[_In]) -> Generator[_Out]:
    """Yield `work(thing)` for all things, in order, while the next `DEPTH` are being done.

    What `work` raises is raised in its turn. The threads end with the iterator: close it.
    """
    left = iter(things)
    yield from map(work, islice(left, ALONE))
    todo: SimpleQueue[_Turn[_In, _Out] | None] = SimpleQueue()
    turns: deque[_Turn[_In, _Out]] = deque()
    threads: list[threading.Thread] = []
    try:
        for thing in left:
            turns.append(_Turn(work, thing))
            todo.put(turns[-1])
            if len(threads) < THREADS:
                threads.append(threading.Thread(target=_work, args=(todo,), daemon=True))
                threads[-1].start()
            if len(turns) == DEPTH:
                yield turns.popleft().result()
        while turns:
            yield turns.popleft().result()
    finally:
        for _ in threads:
            todo.put(None)
        for thread in threads:
            thread.join()


class _Turn(Generic[_In, _Out]):
    """One piece of work; `result` waits for what it returned, or raises what it raised."""

    def __init__(self, work: Callable[[_In], _Out], thing: _In) -> None:
        self._work = work
        self._thing = thing
        self._done: SimpleQueue[tuple[_Out] | BaseException] = SimpleQueue()

    def run(self) -> None:
        try:
            self._done.put((self._work(self._thing),))
        except BaseException as error:  # whose turn it is gets it
            self._done.put(error)

    def result(self) -> _Out:
        outcome = self._done.get()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome[0]


def _work(todo: SimpleQueue[_Turn[_In, _Out] | None]) -> None:
    while (turn := todo.get()) is not None:
        turn.run()
