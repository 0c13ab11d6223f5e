"""The kernel's side of /dev/fuse, played by a test: a socket that keeps the ends of messages."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

from dmcopy.export.fuse.file import FuseRequests
from dmcopy.io import Reactor
from dmcopy.io.poller import Poller
from dmcopy.io.simulated import SimulatedBackend

READ, WRITE, FSYNC, INIT, FALLOCATE = 15, 16, 20, 26, 43
PUNCH, ZERO = 0x03, 0x10


class Simulated(SimulatedBackend):
    """Disks in memory, and descriptors beside them."""

    def __init__(self, poller: Poller, seed: int) -> None:
        super().__init__(seed)
        self._poller = poller

    def poll(self, timeout: float | None) -> list[Any]:
        self._poller.wait(0)
        return [] if self._poller.fired else super().poll(timeout)


def reactor(seed: int = 7) -> Reactor:
    return Reactor(lambda poller: Simulated(poller, seed), stacked=True)


class Kernel:
    """Sends requests to a `FuseRequests` for `device`, and keeps the answers by their numbers."""

    def __init__(self, reactor: Reactor, device: Any) -> None:
        self.reactor = reactor
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        theirs.setblocking(False)
        self.gone = False
        self.requests = FuseRequests(reactor, device, theirs.detach(), self._ended)
        self.told: list[tuple[int, bytes]] = []
        self.answers: dict[int, tuple[int, bytes]] = {}
        self._last = 0

    def _ended(self) -> None:
        self.gone = True

    def send(self, opcode: int, body: bytes = b"") -> int:
        self._last += 2
        head = struct.pack("=IIQQIIIHH", 40 + len(body), opcode, self._last, 1, 0, 0, 0, 0, 0)
        self._socket.send(head + body)
        return self._last

    def read(self, offset: int, size: int) -> int:
        return self.send(READ, struct.pack("=QQIIQII", 0, offset, size, 0, 0, 0, 0))

    def write(self, offset: int, data: bytes, flags: int = os.O_WRONLY) -> int:
        head = struct.pack("=QQIIQII", 0, offset, len(data), 0, 0, flags, 0)
        return self.send(WRITE, head + data)

    def fallocate(self, offset: int, length: int, mode: int) -> int:
        return self.send(FALLOCATE, struct.pack("=QQQII", 0, offset, length, mode, 0))

    def collect(self) -> None:
        """Take the answers that have come."""
        while True:
            try:
                message = self._socket.recv(1 << 20)
            except BlockingIOError:
                return
            length, error, unique = struct.unpack_from("=IiQ", message)
            assert length == len(message)
            if not unique:
                self.told.append((error, message[16:]))
                continue
            assert unique not in self.answers, "answered twice"
            self.answers[unique] = (error, message[16:])

    def answer(self, unique: int) -> tuple[int, bytes]:
        """Wait for the answer to a request: its error, which is 0 or below, and the rest."""

        def there() -> bool:
            self.collect()
            return unique in self.answers

        self.reactor.run_until(there, 60, f"the answer to request {unique}")
        return self.answers[unique]

    def ask(self, opcode: int, body: bytes = b"") -> tuple[int, bytes]:
        return self.answer(self.send(opcode, body))

    def until(self, done: Callable[[], Any]) -> None:
        self.reactor.run_until(done, 60, "the requests to end")

    def close(self) -> None:
        self._socket.close()


EIO, EOPNOTSUPP, ENOSPC = -errno.EIO, -errno.EOPNOTSUPP, -errno.ENOSPC
