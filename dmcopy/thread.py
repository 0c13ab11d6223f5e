"""Threads whose start ends, whatever becomes of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

_LOOKS: Final = 50
_LOOK_SECONDS: Final = 0.1


class Thread(threading.Thread):
    """A thread that the process does not wait for at its end.

    `start` raises MemoryError where the thread dies before it begins, as it does with no memory
    left for its first line. threading's waits for it for ever then (seen with Python 3.11 at many a
    limit of RLIMIT_AS). RuntimeError is that of the system, which gives no thread.
    """

    def __init__(self, target: Callable[[], object], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)
        self._started = _Begun()  # what threading sets in the new thread, and waits for in `start`

    def run(self) -> None:
        if self._started.claim():
            super().run()


class Threads(list[Thread]):
    """Up to `limit` threads, begun one by one: fewer where the system gives no more.

    There may be none at all: what hands out the work then does it itself.
    """

    def __init__(self, limit: int, name: str) -> None:
        super().__init__()
        self.limit = limit
        self._name = name

    def begin_one(self, target: Callable[[], object]) -> None:
        """Begin another one, or let there be no more from now on (RLIMIT_NPROC, RLIMIT_AS)."""
        thread = Thread(target, self._name)
        try:
            thread.start()
        except (RuntimeError, MemoryError):
            self.limit = len(self)
        else:
            self.append(thread)


class _Begun(threading.Event):
    """Set when a thread begins. What waits for it may give up, after which the thread does nothing.

    Many short waits, not a long one: time in which the whole process is stopped does not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self._claims = [True]

    def claim(self) -> bool:
        """Whether this is the first claim: that the thread runs, or that it never will."""
        try:
            return self._claims.pop()
        except IndexError:
            return False

    def wait(self, timeout: float | None = None) -> bool:
        del timeout
        if any(super(_Begun, self).wait(_LOOK_SECONDS) for _ in range(_LOOKS)) or not self.claim():
            return True
        raise MemoryError("a thread was started, and died before it began")
