"""Commands that change devices: for one device one after another, for several in parallel.

What the kernel does under a device's own lock (suspend_lock in dm.c) is in turn here: a resume
waits for the end of a suspend of its device, and for no other (measured on 6.12).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection
from inspect import iscoroutine
from typing import Any

from dmcopy.errors import DeadlineError, DeviceError
from dmcopy.io.reactor import Reactor, Timer
from dmcopy.mapper.waiting import Change, Until

Told = Callable[[Any, Exception | None], object]
"""Is called with a command's result, or its exception."""


class DeviceChange:
    """One change: `call` does it, or returns the coroutine that does. `names`: its devices."""

    def __init__(self, names: Collection[str], call: Callable[[], Any], told: Told) -> None:
        self.names = frozenset(names)
        self.call = call
        self.told = told
        self.change: Change[Any] | None = None
        self.until: Until | None = None
        self.timer: Timer | None = None
        self.late = False
        self.given_up = False

    def give_up(self) -> None:
        """End it where it waits, as a signal ends the kernel's (dm_wait_for_completion).

        One that has not begun is still done. May be called inside of callbacks.
        """
        self.given_up = True

    @property
    def is_due(self) -> bool:
        """Whether it can continue: its event has come, or it was given up."""
        return self.until is not None and bool(self.late or self.given_up or self.until.done())


class Commands:
    """The queued and the running commands of a reactor. `timeout`: of each wait, in seconds."""

    def __init__(self, reactor: Reactor, timeout: float) -> None:
        self._reactor = reactor
        self._timeout = timeout
        self._queue: list[DeviceChange] = []
        self._running: list[DeviceChange] = []

    def add(self, command: DeviceChange) -> None:
        """Queue a command; it runs soon, and in its turn. May be called inside of callbacks."""
        self._queue.append(command)

    def due(self) -> bool:
        """Whether `step` has anything to do."""
        return self._next() is not None

    def step(self) -> None:
        """Begin a command, or continue one, up to its end or next wait. Outside of callbacks."""
        command = self._next()
        if command is None:
            return
        if command in self._queue:
            self._queue.remove(command)
        else:
            self._running.remove(command)
        try:
            result = self._advance(command)
        except Exception as error:
            command.told(None, error)
        else:
            if command.until is None:
                command.told(result, None)
            else:
                self._running.append(command)

    def close(self) -> None:
        """End what waits, as though each had been given up."""
        self._queue.clear()
        for command in list(self._running):
            command.give_up()
            self.step()

    def _next(self) -> DeviceChange | None:
        taken: set[str] = set()
        for command in self._running:
            if command.is_due:
                return command
            taken |= command.names
        for command in self._queue:
            if not taken & command.names:
                return command
            taken |= command.names
        return None

    def _advance(self, command: DeviceChange) -> Any:
        until, command.until = command.until, None
        try:
            if until is None:
                result = command.call()
                if not iscoroutine(result):
                    return result
                command.change = result
                command.until = result.send(None)
            else:
                assert command.change is not None
                assert command.timer is not None
                command.timer.cancel()
                error = None if until.done() else self._why(command, until)
                change = command.change
                command.until = change.throw(error) if error else change.send(None)
        except StopIteration as end:
            return end.value

        def late() -> None:
            command.late = True

        command.late = False
        command.timer = self._reactor.call_later(self._timeout, late)
        return None

    def _why(self, command: DeviceChange, until: Until) -> Exception:
        if command.late:
            return DeadlineError(f"waited {self._timeout:g} s for {until.waiting_for}")
        name = ", ".join(command.names)
        return DeviceError(name, "change it", errno.EINTR, "the command was ended meanwhile")
