"""Work done ahead of its turn, on a few threads: a device answers several reads side by side.

The areas of a store with small chunks are small and far apart, so reading one after the other is
nothing but waiting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from time import perf_counter
from typing import TYPE_CHECKING, Final, TypeVar

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

    from concurrent.futures import ThreadPoolExecutor  # costs milliseconds, and a short store none

    turns: deque[Future[_Out]] = deque()
    with ThreadPoolExecutor(THREADS) as threads:
        try:
            for thing in left:
                try:
                    turns.append(threads.submit(work, thing))
                except RuntimeError:  # no thread can be started: those that there are, or we
                    while turns:
                        yield turns.popleft().result()
                    yield work(thing)
                if len(turns) == DEPTH:
                    yield turns.popleft().result()
            while turns:
                yield turns.popleft().result()
        finally:
            for turn in turns:
                turn.cancel()
