"""Awaiting on a reactor: asyncio drives it by its descriptor, for as long as a task awaits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from weakref import WeakKeyDictionary

from dmcopy.io.reactor import Reactor


class _Driver:
    """Steps a reactor from asyncio's loop while a task awaits something of it.

    What a step raises, each of `waiting` raises: whose it was is not known.
    """

    def __init__(self, reactor: Reactor, loop: asyncio.AbstractEventLoop) -> None:
        self.waiting: set[asyncio.Future[None]] = set()
        self._reactor = reactor
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, future: asyncio.Future[None]) -> None:
        if not self.waiting:
            self._loop.add_reader(self._reactor.fileno(), self._step)
        self.waiting.add(future)
        self._loop.call_soon(self._step)

    def leave(self, future: asyncio.Future[None]) -> None:
        self.waiting.remove(future)
        if not self.waiting:
            self._loop.remove_reader(self._reactor.fileno())

    def _step(self) -> None:
        if not self.waiting:
            return
        try:
            self._reactor.step(0)
        except Exception as error:
            for future in self.waiting:
                if not future.done():
                    future.set_exception(error)
        if self._timer is not None:
            self._timer.cancel()  # also when it is this one that has come
        due = self._reactor.next_due()
        if due is not None:
            self._timer = self._loop.call_later(due, self._step)


_drivers: WeakKeyDictionary[Reactor, _Driver] = WeakKeyDictionary()


async def wait_for(
    reactor: Reactor, add_done_callback: Callable[[Callable[[], object]], None]
) -> None:
    """Return when the callback given to `add_done_callback` has been called.

    On the reactor's own thread, this drives the reactor, and raises what `Reactor.step` raises;
    elsewhere, its owner does.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        if not future.done():
            future.set_result(None)

    def wake() -> None:
        if not loop.is_closed():  # as it may be when the task that waited was cancelled
            loop.call_soon_threadsafe(end)

    add_done_callback(wake)
    if not reactor.is_mine:
        await future
        return
    driver = _drivers.get(reactor)
    if driver is None or driver._loop is not loop:
        driver = _drivers[reactor] = _Driver(reactor, loop)
    driver.enter(future)
    try:
        await future
    finally:
        driver.leave(future)
