"""The kernel's nbd driver, played by a test: it takes messages, and asks through the sockets.

What it refuses, and when, is as in drivers/block/nbd.c, 6.12.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmcopy.io import Reactor, nbd

READ, WRITE, DISC, FLUSH, TRIM, ZEROES = 0, 1, 2, 3, 4, 6
FUA = 1 << 16
CONNECT, DISCONNECT, RECONFIGURE = 1, 2, 3
FAMILY = 0x1D
SECONDS = 20.0


@dataclass
class Device:
    """A device of the driver's, connected; `dead`: its server is gone."""

    socket: socket.socket
    values: dict[str, int]
    backend: str
    dead: bool = False
    asked: dict[int, bytes] = field(default_factory=dict)
    inbox: bytearray = field(default_factory=bytearray)
    results: dict[int, tuple[int, bytes]] = field(default_factory=dict)


class Driver(nbd.NbdControl):
    """Devices by their numbers, with their files in `blocks`; `fails`: errnos by commands."""

    def __init__(self, blocks: Path) -> None:
        self.blocks = blocks
        self.devices: dict[int, Device] = {}
        self.fails: dict[int, int] = {}
        self.calls: list[int] = []
        self.deaf = 0
        """How many more times the driver does not know yet that a server is gone."""
        self._last = 0
        for number in range(2):
            (blocks / f"nbd{number}/queue").mkdir(parents=True)

    def exchange(self, family: int, command: int, attributes: bytes) -> bytes:
        found = dict(parsed(attributes))
        if family == 16:
            assert (command, found) == (3, {2: b"nbd\0"})
            return attribute(2, b"nbd\0") + attribute(1, struct.pack("=H", FAMILY))
        assert family == FAMILY
        self.calls.append(command)
        if command in self.fails:
            raise OSError(self.fails[command], os.strerror(self.fails[command]))
        if command == CONNECT:
            return self._connect(found)
        number = as_int(found[1])
        if command == DISCONNECT:
            self._disconnect(number)
            return b""
        assert command == RECONFIGURE
        device = self.devices[number]
        if found[10] != device.backend.encode() + b"\0":
            raise OSError(errno.EINVAL, "another's")
        if 2 in found:
            device.values["size"] = as_int(found[2])
        if 7 in found:
            taken = sock(found[7])
            if self.deaf or not device.dead:
                self.deaf = max(0, self.deaf - 1)
                taken.close()  # and nothing is said
            else:
                device.socket.close()
                device.socket, device.dead = taken, False
                for request in device.asked.values():
                    taken.sendall(request)
        return b""

    def _connect(self, found: dict[int, bytes]) -> bytes:
        number = next(number for number in range(16) if number not in self.devices)
        words = {"size": 2, "block": 3, "timeout": 4, "flags": 5, "dead_timeout": 8}
        values = {word: as_int(found[kind]) for word, kind in words.items()}
        backend = found[10].rstrip(b"\0").decode()
        self.devices[number] = Device(sock(found[7]), values, backend)
        (self.blocks / f"nbd{number}/queue").mkdir(parents=True, exist_ok=True)
        (self.blocks / f"nbd{number}/backend").write_text(f"{backend}\n")
        return attribute(1, struct.pack("=I", number))

    def _disconnect(self, number: int) -> None:
        device = self.devices.pop(number)
        if not device.dead:
            try:
                device.socket.sendall(request(DISC, 0))
            except OSError:
                device.dead = True
        device.socket.shutdown(socket.SHUT_RDWR)
        device.socket.close()
        (self.blocks / f"nbd{number}/backend").unlink()

    def ask(self, what: int, start: int, count: int, data: bytes = b"", *, number: int = 0) -> int:
        """Ask for something of sectors; return the cookie of the request."""
        self._last += 1
        asked = request(what, self._last, start << 9, count << 9) + data
        self.devices[number].asked[self._last] = asked
        with contextlib.suppress(BrokenPipeError):  # it waits for the next server
            self.devices[number].socket.sendall(asked)
        return self._last

    def look(self, number: int) -> None:
        """Take the answers that have come; see whether the server is gone."""
        device = self.devices[number]
        try:
            more = device.socket.recv(1 << 20, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        device.dead = device.dead or not more
        device.inbox += more
        while len(device.inbox) >= 16:
            magic, error, cookie = struct.unpack_from("!IIQ", device.inbox)
            assert magic == 0x67446698
            asked = device.asked[cookie]
            (what,) = struct.unpack_from("!H", asked, 6)
            length = struct.unpack_from("!I", asked, 24)[0] if what == READ and not error else 0
            if len(device.inbox) < 16 + length:
                return
            device.results[cookie] = (error, bytes(device.inbox[16 : 16 + length]))
            del device.inbox[: 16 + length], device.asked[cookie]


def request(what: int, cookie: int, offset: int = 0, length: int = 0) -> bytes:
    return struct.pack("!IIQQI", 0x25609513, what, cookie, offset, length)


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def parsed(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & 0x7FFF, data[4:length]
        data = data[length + -length % 4 :]


def as_int(data: bytes) -> int:
    assert len(data) in (4, 8)
    return int(struct.unpack("=I" if len(data) == 4 else "=Q", data)[0])


def sock(data: bytes) -> socket.socket:
    """What the driver takes of the list of sockets: a descriptor of its own."""
    ((kind, item),) = parsed(data)
    ((inner, number),) = parsed(item)
    assert (kind, inner) == (1, 1)
    return socket.socket(fileno=os.dup(as_int(number)))


def result(reactor: Reactor, driver: Driver, cookie: int, number: int = 0) -> tuple[int, bytes]:
    """Wait for the answer to a request: an errno, and what was read."""
    device = driver.devices[number]
    until(reactor, driver, lambda: cookie in device.results, number)
    return device.results.pop(cookie)


def until(reactor: Reactor, driver: Driver, done: Callable[[], Any], number: int = 0) -> None:
    def looked() -> Any:
        driver.look(number)
        return done()

    reactor.run_until(looked, SECONDS, "the requests to end")
