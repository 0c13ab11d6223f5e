"""Calls that wait for what this very process serves: on a thread, while the reactor works.

A program that looks at a device served here (stat(2), losetup, umount) asks its server. On the
reactor's thread that would be a process that waits for itself, which only SIGKILL ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final, TypeVar

from dmcopy.errors import ClosedError, DeviceError, of_limit
from dmcopy.io.reactor import Reactor
from dmcopy.mapper.waiting import Until, drive
from dmcopy.thread import Thread

_SECONDS: Final = 60.0
_T = TypeVar("_T")


def aside(reactor: Reactor, call: Callable[[], _T], waiting_for: str, *, timeout: float) -> _T:
    """Return what `call` returns, or raise what it raises, and run the reactor meanwhile.

    Outside of callbacks only. Raises DeadlineError after `timeout` seconds: then the call continues
    by itself, and its result is lost. Raises MissingError where no thread may be started.
    """
    return drive(reactor, beside(reactor, call, waiting_for), timeout)


async def beside(reactor: Reactor, call: Callable[[], _T], waiting_for: str) -> _T:
    """Do the same as `aside`, as a change (`mapper.waiting`) beside which others are done.

    A change that is given up still waits, and does nothing else meanwhile: the call has begun, and
    the thing that it makes must not be lost.
    """
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)
        with contextlib.suppress(ClosedError):  # the wait was given up
            reactor.call_soon_threadsafe(lambda: None)

    try:
        Thread(run, "dmcopy-aside").start()
    except (RuntimeError, MemoryError) as error:
        raise of_limit(error) or error from None
    done = Until(lambda: results or errors, waiting_for)
    try:
        await done
    except DeviceError:
        reactor.run_until(done.done, _SECONDS, waiting_for)
    if errors:
        raise errors[0]
    return results[0]
