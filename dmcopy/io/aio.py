"""Awaiting on a reactor: asyncio drives it by its descriptor, for as long as somebody awaits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from weakref import WeakKeyDictionary

from dmcopy.io.reactor import Reactor


class _Driver:
    """Steps a reactor from asyncio's loop while `users` is not zero."""

    def __init__(self, reactor: Reactor, loop: asyncio.AbstractEventLoop) -> None:
        self._reactor = reactor
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._users = 0

    def enter(self) -> None:
        self._users += 1
        if self._users == 1:
            self._loop.add_reader(self._reactor.fileno(), self._step)
        self._loop.call_soon(self._step)

    def leave(self) -> None:
        self._users -= 1
        if not self._users:
            self._loop.remove_reader(self._reactor.fileno())

    def _step(self) -> None:
        if not self._users:
            return
        self._reactor.step(0)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._reactor.next_due()
        if due is not None:
            self._timer = self._loop.call_later(due, self._step)


_drivers: WeakKeyDictionary[Reactor, _Driver] = WeakKeyDictionary()


async def wait_for(
    reactor: Reactor, add_done_callback: Callable[[Callable[[], object]], None]
) -> None:
    """Return when the callback given to `add_done_callback` has been called.

    On the reactor's own thread, this drives the reactor; elsewhere, whoever owns it does.
    """
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    add_done_callback(lambda: loop.call_soon_threadsafe(done.set))
    if not reactor.is_mine:
        await done.wait()
        return
    driver = _drivers.get(reactor)
    if driver is None or driver._loop is not loop:
        driver = _drivers[reactor] = _Driver(reactor, loop)
    driver.enter()
    try:
        await done.wait()
    finally:
        driver.leave()
