"""One connection's socket on a reactor: what is to be sent waits in a queue, without a thread."""

from __future__ import annotations

import itertools
import select
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from dmcopy.io.reactor import Reactor

if TYPE_CHECKING:
    import ssl

    from dmcopy.export.tls import TlsSocket

Bytes = bytes | memoryview
_AT_ONCE: Final = 128
"""Pieces in one system call; IOV_MAX is 1024."""


class Wire:
    """A stream socket: `readable` is called when there is something to read, while `reading`.

    `closed` is called once, soon after the other side is gone or `close` was called.
    """

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        readable: Callable[[], object],
        closed: Callable[[], object],
    ) -> None:
        sock.setblocking(False)
        self.reactor = reactor
        self.is_open = True
        self._socket: socket.socket | TlsSocket = sock
        self._pending: Callable[[], int] | None = None
        self._readable = readable
        self._closed = closed
        self._queue: deque[tuple[Bytes, Callable[[], object] | None]] = deque()
        self._scheduled = False
        self._ending = False
        self._reading = True
        self._full = False
        self._events = select.EPOLLIN
        reactor.watch(sock.fileno(), self._ready, self._events)

    @property
    def reading(self) -> bool:
        return self._reading

    @reading.setter
    def reading(self, value: bool) -> None:
        self._reading = value
        self._watch()
        self._look_again()

    def encrypt(self, context: ssl.SSLContext) -> None:
        """Speak TLS from here on, as the server; nothing may be waiting to be sent."""
        from dmcopy.export.tls import TlsSocket

        assert isinstance(self._socket, socket.socket)
        self._socket = TlsSocket(self._socket, context)
        self._pending = self._socket.pending

    def receive(self, *into: memoryview) -> int | None:
        """Read what there is; return how many bytes, None for none yet; 0 is the end."""
        try:
            return self._socket.recvmsg_into(into)[0]
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:  # the other side is gone in some other way than by closing
            return 0

    def send(self, *data: Bytes, sent: Callable[[], object] | None = None) -> None:
        """Send all of `data` before the next I/O; call `sent` when it may be changed again.

        `sent` is not called when the wire is closed before.
        """
        if not self.is_open:
            return
        *first, last = data
        for piece in first:
            self._queue.append((piece, None))
        self._queue.append((last, sent))
        if not self._scheduled:
            self._scheduled = True
            self.reactor.call_before_io(self._send_scheduled)

    def end(self) -> None:
        """Close when all that waits to be sent is sent; read no more."""
        self._ending = True
        self.reading = False
        if not self._queue:
            self.close()

    def close(self) -> None:
        """Close; data that waits to be sent is lost. May be called again."""
        if not self.is_open:
            return
        self.is_open = False
        self._queue.clear()
        self.reactor.unwatch(self._socket.fileno())
        self._socket.close()
        # Not here: what is waited for may happen by it, and this may be right before a wait.
        self.reactor.call_soon(self._closed)

    def _watch(self) -> None:
        events = select.EPOLLIN * self._reading | select.EPOLLOUT * self._full
        if self.is_open and events != self._events:
            # With no events at all, epoll still tells of a peer that is gone.
            self._events = events
            self.reactor.unwatch(self._socket.fileno())
            self.reactor.watch(self._socket.fileno(), self._ready, events)

    def _ready(self, events: int) -> None:
        try:
            if events & select.EPOLLOUT:
                self._send_queue()
            if events & select.EPOLLIN and self._reading and self.is_open:
                self._readable()
                self._look_again()
            elif events & (select.EPOLLHUP | select.EPOLLERR) and not events & select.EPOLLIN:
                self.close()
        except BaseException:
            self.close()  # what this was for cannot continue
            raise

    def _look_again(self) -> None:
        """Schedule a read of data that is decrypted already: the descriptor does not tell of it."""
        if self._pending is not None and self._reading and self.is_open and self._pending():
            self.reactor.call_soon(partial(self._ready, select.EPOLLIN))

    def _send_scheduled(self) -> None:
        self._scheduled = False
        try:
            self._send_queue()
        except BaseException:
            self.close()
            raise

    def _send_queue(self) -> None:
        queue = self._queue
        while queue:
            pieces = [piece for piece, _ in itertools.islice(queue, _AT_ONCE)]
            try:
                left = self._socket.sendmsg(pieces)
            except (BlockingIOError, InterruptedError):
                left = 0
            except OSError:
                self.close()
                return
            blocked = left < sum(map(len, pieces))
            while queue and left >= len(queue[0][0]):
                data, sent = queue.popleft()
                left -= len(data)
                if sent is not None:
                    sent()
            if blocked:
                if queue:  # it was not closed meanwhile
                    data, sent = queue[0]
                    queue[0] = (memoryview(data)[left:], sent)
                break
        self._full = bool(queue)
        self._watch()
        if self._ending and not queue:
            self.close()
