"""Changes of devices that wait for I/O, as coroutines: what drives them decides how they wait.

`drive` does it alone. The device server has several under way, for a device each.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from dmcopy.io.reactor import Reactor

_T = TypeVar("_T")
Change = Coroutine["Until", None, _T]
"""What it awaits is only ever an `Until`."""


class Until:
    """Awaited, it lets others work until `done()` is true. `waiting_for`: what to say when late."""

    def __init__(self, done: Callable[[], Any], waiting_for: str) -> None:
        self.done = done
        self.waiting_for = waiting_for

    def __await__(self) -> Generator[Until, None, None]:
        if not self.done():
            yield self


def drive(reactor: Reactor, change: Change[_T], timeout: float) -> _T:
    """Return what a change comes to; `timeout`, in seconds, bounds each of its waits.

    Outside of callbacks only. Raises what it raises, and DeadlineError.
    """
    try:
        until = change.send(None)
        while True:
            try:
                reactor.run_until(until.done, timeout, until.waiting_for)
            except BaseException as error:
                until = change.throw(error)
            else:
                until = change.send(None)
    except StopIteration as end:
        result: _T = end.value
        return result
