"""Waiting for file descriptors, and being woken by other threads."""

from __future__ import annotations

import os
import select
from collections.abc import Callable


class Poller:
    """An epoll set with a bell in it: `wake` may be called from any thread or signal handler."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._bell, select.EPOLLIN)
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
        """Wait at most `timeout` seconds for a descriptor or a wake-up, and notify the watchers."""
        for fd, events in self._epoll.poll(timeout):
            if fd == self._bell:
                os.eventfd_read(fd)
            elif fd in self._watched:  # an earlier watcher may have unwatched it
                self._watched[fd](events)

    def close(self) -> None:
        """Close the set; the watched descriptors stay open."""
        self._epoll.close()
        os.close(self._bell)
