"""Waiting for file descriptors, and being woken by other threads."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from functools import partial

from dmcopy.errors import MissingError


class Poller:
    """An epoll set with an eventfd in it: `wake` may be called from any thread or signal handler.

    `fired` are the calls that `wait` found due, for the reactor to make.
    Raises MissingError where there is no descriptor left.
    """

    _bell = -1

    def __init__(self) -> None:
        try:
            self._epoll = select.epoll()
            self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._epoll.register(self._bell, select.EPOLLIN)
        except OSError as error:
            raise MissingError(
                f"there is nothing to wait for I/O with: {error.strerror}"
            ) from error
        self.fired: list[Callable[[], object]] = []
        self._watched: dict[int, Callable[[int], object]] = {}

    def fileno(self) -> int:
        """A descriptor that is readable when `wait` has something to do."""
        return self._epoll.fileno()

    def watch(self, fd: int, notify: Callable[[int], object], events: int = select.EPOLLIN) -> None:
        """Call `notify(events)` whenever `fd` is ready, until `unwatch`."""
        self._epoll.register(fd, events)
        self._watched[fd] = notify

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`; it must still be open."""
        self._epoll.unregister(fd)
        del self._watched[fd]

    def wake(self) -> None:
        """End the present or the next `wait`."""
        os.eventfd_write(self._bell, 1)

    def wait(self, timeout: float | None) -> None:
        """Wait at most `timeout` seconds for a descriptor or a wake-up; see `fired`."""
        for fd, events in self._epoll.poll(timeout):
            if fd == self._bell:
                os.eventfd_read(fd)
            else:
                self.fired.append(partial(self._notify, fd, events))

    def _notify(self, fd: int, events: int) -> None:
        if fd in self._watched:  # an earlier watcher may have unwatched it
            self._watched[fd](events)

    def close(self) -> None:
        """Close the set; the watched descriptors stay open."""
        self._epoll.close()
        self._close_bell()

    def __del__(self) -> None:
        self._close_bell()  # of a reactor that was forgotten; the epoll object closes itself

    def _close_bell(self) -> None:
        fd, self._bell = self._bell, -1
        if fd >= 0:
            os.close(fd)
