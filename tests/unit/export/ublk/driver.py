"""The kernel's ublk driver, played by a test: it reads and writes the bytes that the kernel does.

What it refuses, and when, is as in drivers/block/ublk_drv.c, 6.12.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmcopy.io import Reactor, ublk

READ, WRITE, FLUSH, DISCARD, ZEROES = 0, 1, 2, 3, 5
FUA = 1 << 13
RECOVERY, UPDATE_SIZE = 1 << 3, 1 << 10
ABORTED = -errno.ENODEV
SECONDS = 20.0


@dataclass
class Device:
    """A device of the driver's. `idle`: memory of the tags that it has, by tag."""

    number: int
    depth: int
    max_bytes: int
    flags: int
    mark: int
    file: Path
    state: int = 0
    pid: int = -1
    params: tuple[int, ...] = ()
    ring: Ring | None = None
    idle: dict[int, int] = field(default_factory=dict)
    asked: dict[int, tuple[int, int, int, bytes]] = field(default_factory=dict)
    memory: dict[int, int] = field(default_factory=dict)
    results: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    stopping: bool = False


class Driver(ublk.UblkControl):
    """Devices, whose queues are files in `folder`; `fails`: errnos by the numbers of commands."""

    def __init__(self, folder: Path, *, features: int = 0x1FE) -> None:
        self.folder = folder
        self.able = features
        self.devices: dict[int, Device] = {}
        self.fails: dict[int, int] = {}
        self.calls: list[int] = []
        self.changed = threading.Condition()

    def numbers(self) -> list[int]:
        return sorted(self.devices)

    def queue_node(self, number: int) -> str:
        return str(self.folder / f"ublkc{number}")

    def command(
        self, code: int, number: int, *, data: int = 0, buffer: bytearray | None = None
    ) -> None:
        assert code >> 8 & 0xFF == ord("u")
        assert code >> 16 & 0x3FFF == 32
        what = code & 0xFF
        self.calls.append(what)
        if what in self.fails:
            raise OSError(self.fails[what], os.strerror(self.fails[what]))
        with self.changed:
            if what == 0x13:
                assert buffer is not None
                buffer[:] = struct.pack("<Q", self.able)
            elif what == 0x04:
                assert buffer is not None
                self._add(number, buffer)
            elif number not in self.devices:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
            else:
                self._about(what, self.devices[number], data, buffer)

    def _add(self, number: int, buffer: bytearray) -> None:
        queues, depth, _, _, most, wanted, _, _, flags, mark = struct.unpack_from(
            "<HHHHIIiIQQ", buffer
        )
        assert queues == 1
        assert wanted == number
        assert len(buffer) == 64
        if number == 0xFFFFFFFF:
            number = next(n for n in range(100) if n not in self.devices)
        assert number not in self.devices
        file = Path(self.queue_node(number))
        file.write_bytes(bytes(depth * 24 + -depth * 24 % 4096))
        made = self.devices[number] = Device(number, depth, most, flags, mark, file)
        buffer[:] = self._info(made)

    def _info(self, of: Device) -> bytes:
        return struct.pack(
            "<HHHHIIiIQQIIQQ",
            *(1, of.depth, of.state, 0, of.max_bytes, of.number, of.pid, 0),
            *(of.flags, of.mark, 0, 0, 0, 0),
        )

    def _about(self, what: int, of: Device, data: int, buffer: bytearray | None) -> None:
        if what == 0x02:
            assert buffer is not None
            buffer[:] = self._info(of)
        elif what == 0x08:
            assert buffer is not None
            size, types = struct.unpack_from("<II", buffer)
            assert size == len(buffer) == 60
            assert types == 3
            of.params = struct.unpack_from("<IBBBBIIQQIIIIH", buffer, 8)
        elif what in (0x06, 0x11):
            assert len(of.idle) == of.depth, "the driver would wait for all tags"
            assert of.state == (0 if what == 0x06 else 2)
            of.state, of.pid = 1, data
            for request in list(of.asked.values()):
                self._give(of, *request)
        elif what == 0x07:
            of.stopping = True
            assert self.changed.wait_for(lambda: not of.memory, SECONDS), "requests end"
            of.state, of.pid = 0, -1
            for tag in list(of.idle):
                self._complete(of, tag, ABORTED)
        elif what in (0x05, 0x14):
            assert of.ring is None or what == 0x14, "it would wait for its server"
            of.file.unlink()
            del self.devices[of.number]
        elif what == 0x15:
            of.params = (*of.params[:7], data, *of.params[8:])
        elif what == 0x10:
            if of.state != 2:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            of.idle.clear()
            of.memory.clear()
        else:
            raise AssertionError(what)

    def ask(
        self, operation: int, start: int = 0, sectors: int = 0, data: bytes = b"", number: int = 0
    ) -> int:
        """Ask for something of a device; return the tag. Its result will be in `results`."""
        with self.changed:
            of = self.devices[number]
            assert of.state == 1
            assert not of.stopping
            tag = self._give(of, operation, start, sectors, data)
            of.asked[tag] = (operation, start, sectors, data)
            return tag

    def _give(self, of: Device, operation: int, start: int, sectors: int, data: bytes) -> int:
        tag = min(of.idle)
        of.results.pop(tag, None)
        with open(of.file, "r+b") as file:
            file.seek(tag * 24)
            file.write(struct.pack("<IIQQ", operation, sectors, start, of.idle[tag]))
        if operation & 0xFF == WRITE:
            ctypes.memmove(of.idle[tag], data, len(data))
        of.memory[tag] = of.idle[tag]
        self._complete(of, tag, 0)
        return tag

    def _complete(self, of: Device, tag: int, result: int) -> None:
        assert of.ring is not None
        del of.idle[tag]
        of.ring.completions += [tag, result & 0xFFFFFFFF]
        of.ring.wake()

    def taken(self, of: Device, tag: int, result: int, address: int) -> None:
        """Take a command of a queue: the result of a request, if there is one, and the tag."""
        with self.changed:
            if tag in of.memory:
                operation, _, sectors, _ = of.asked.pop(tag)
                del of.memory[tag]
                read = operation & 0xFF == READ and result > 0
                data = ctypes.string_at(address, sectors << 9) if read else b""
                of.results[tag] = (result, data)
                self.changed.notify_all()
            of.idle[tag] = address
            if of.stopping and not of.memory:
                self._complete(of, tag, ABORTED)

    def gone(self, of: Device) -> None:
        """Note that its server has ended."""
        with self.changed:
            of.ring = None
            of.idle.clear()
            of.memory.clear()
            if of.state == 1:
                of.state = 2 if of.flags & RECOVERY else 0


class Ring:
    """The ring of a queue, whose entries go to the driver."""

    driver: Driver
    sizes = struct.Struct("<BBHiIIQIIQHHI HHiQ")

    def __init__(self, entries: int) -> None:
        self.entries = entries
        self.sqes = bytearray(entries * 64)
        self.completions: list[int] = []
        self._pending: list[int] = []
        self._of: Device | None = None
        self._bell = -1

    def register_eventfd(self, fd: int) -> None:
        self._bell = fd

    def wake(self) -> None:
        os.eventfd_write(self._bell, 1)

    def queue(self, indices: list[int]) -> None:
        self._pending += indices

    def enter(self, submit: int, wait: int) -> int:
        assert not wait
        assert submit == len(self._pending)
        for index in self._pending:
            self._take(index)
        self._pending.clear()
        return submit

    def _take(self, index: int) -> None:
        opcode, _, _, fd, code, _, _, _, _, user, _, _, _, queue, tag, result, address = (
            self.sizes.unpack_from(self.sqes, index * 64)
        )
        if self._of is None:
            name = os.readlink(f"/proc/self/fd/{fd}")
            (self._of,) = [of for of in self.driver.devices.values() if str(of.file) == name]
            assert self.entries == self._of.depth
            self._of.ring = self
        first = tag not in self._of.memory
        assert (opcode, queue, tag) == (46, 0, user) == (46, 0, index)
        assert code == (0xC0107520 if first else 0xC0107521)
        assert address
        self.driver.taken(self._of, tag, result, address)

    def reap(self) -> list[int]:
        found, self.completions = self.completions, []
        return found

    def close(self) -> None:
        if self._of is not None:
            self.driver.gone(self._of)


def play(patch: Any, driver: Driver) -> None:
    """Have the driver be the kernel's, for the rest of a test."""
    patch.setattr(Ring, "driver", driver, raising=False)
    patch.setattr("dmcopy.export.ublk.queue.Ring", Ring)
    patch.setattr("dmcopy.io.ublk.queue_node", driver.queue_node)


def result(reactor: Reactor, driver: Driver, tag: int, number: int = 0) -> tuple[int, bytes]:
    """Wait for the result of a request: bytes or minus an errno, and what was read."""
    results = driver.devices[number].results
    until(reactor, lambda: tag in results)
    return results.pop(tag)


def until(reactor: Reactor, done: Callable[[], Any]) -> None:
    reactor.run_until(done, SECONDS, "the requests to end")
