"""The kernel's device-mapper without dmsetup: a call takes a millisecond, not a tenth of a second.

For tests with thousands of calls, and for what is timed. The same `Mapper`, so the same test runs
through dmsetup, too.
Layout and numbers: include/uapi/linux/dm-ioctl.h.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import select
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from dmcopy.block.devno import devno_text
from dmcopy.errors import BusyError, DeadlineError, DeviceError
from dmcopy.io.reactor import Reactor
from dmcopy.ledger import Ledger
from dmcopy.mapper.base import DmInfo
from dmcopy.mapper.device import DmDevice
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.passing import table_text
from dmcopy.status import StatusLine, parse_lines
from dmcopy.table import Table

LIST, CREATE, REMOVE, SUSPEND, STATUS, LOAD = 2, 3, 4, 6, 7, 9
CLEAR, DEPS, TABLE, ARM_POLL = 10, 11, 12, 16
READONLY, SUSPENDED, STATUS_TABLE = 1 << 0, 1 << 1, 1 << 4
ACTIVE_PRESENT, INACTIVE_PRESENT = 1 << 5, 1 << 6
SKIP_LOCKFS, NOFLUSH, QUERY_INACTIVE, DEFERRED_REMOVE = 1 << 10, 1 << 11, 1 << 12, 1 << 17

QUIET = 0x2F << 16
"""The udev flags that keep udev's rules off a device: no rules for dm, subsystem, disk, others."""
BUSY_SECONDS = 60.0

_HEAD = struct.Struct("<3I2IIi3IQ128s129s7x")
_SPEC = struct.Struct("<2QiI16s")
_LISTED = struct.Struct("<QI")  # and a name
_SIZE = 1 << 14

Seen = TypeVar("Seen")


class IoctlReader(KernelMapper):
    """`KernelMapper` that asks by ioctl, and changes by dmsetup."""

    def names(self) -> list[str]:
        """Return the names of all devices, as the kernel has them, in order."""
        reply = bytes(self._ioctl("list the devices", LIST, "", 0))
        place, found = _HEAD.unpack_from(reply)[4], []
        while True:
            number, following = _LISTED.unpack_from(reply, place)
            start = place + _LISTED.size
            if number:
                found.append(os.fsdecode(reply[start : reply.index(0, start)]))
            if not following:
                return sorted(found)
            place += following

    def ls(self) -> list[DmInfo]:
        """Return every mapped device of this kernel, by name."""
        return list(self._each(self.info).values())

    def info(self, name: str) -> DmInfo:
        """Return what is known of a device; see `Mapper.info`."""
        head = self._call("look at it", STATUS, name)
        flags, number = head[7], head[10]
        return DmInfo(
            name=name,
            uuid=os.fsdecode(head[12].partition(b"\0")[0]),
            number=(os.major(number), os.minor(number)),
            open_count=head[6],
            segments=head[5],
            events=head[8],
            suspended=bool(flags & SUSPENDED),
            readonly=bool(flags & READONLY),
            live=bool(flags & ACTIVE_PRESENT),
            inactive=bool(flags & INACTIVE_PRESENT),
            deferred=bool(flags & DEFERRED_REMOVE),
        )

    def table(self, name: str, *, inactive: bool = False, showkeys: bool = False) -> Table:
        """Return a table; see `Mapper.table`."""
        del showkeys
        return Table.read(self.table_text(name, inactive=inactive))

    def table_text(self, name: str, *, inactive: bool = False) -> str:
        """Return the lines of a table as the kernel words them."""
        return self._lines(name, STATUS_TABLE | (QUERY_INACTIVE if inactive else 0))

    def active_tables(self) -> dict[str, Table]:
        """Return every active table."""
        return self.tables()

    def tables(self, *, inactive: bool = False, showkeys: bool = False) -> dict[str, Table]:
        """Return every table; see `KernelMapper.tables`."""
        del showkeys
        return self._each(functools.partial(self.table, inactive=inactive))

    def deps(self, name: str) -> tuple[str, ...]:
        """Return the devices under a device; see `Mapper.deps`."""
        reply = self._ioctl("read its dependencies", DEPS, name, 0)
        place = _HEAD.unpack_from(reply)[4]
        (count,) = struct.unpack_from("<I", reply, place)
        numbers = struct.unpack_from(f"<{count}Q", reply, place + 8)
        return tuple(devno_text(number) for number in numbers)

    def all_deps(self) -> dict[str, tuple[str, ...]]:
        """Return the devices under every device."""
        return self._each(self.deps)

    def statuses(self, *, flush: bool = True) -> dict[str, tuple[StatusLine, ...]]:
        """Return the status of every device."""
        return self._each(functools.partial(self.status, flush=flush))

    def _each(self, look: Callable[[str], Seen]) -> dict[str, Seen]:
        """Look at every device, but one that goes meanwhile."""
        found: dict[str, Seen] = {}
        for name in self.names():
            try:
                found[name] = look(name)
            except DeviceError as error:
                if error.errno != errno.ENXIO:
                    raise
        return found

    def status(self, name: str, *, flush: bool = True) -> tuple[StatusLine, ...]:
        """Return the status of each line; see `Mapper.status`."""
        return parse_lines(self._lines(name, 0 if flush else NOFLUSH))

    def _lines(self, name: str, flags: int) -> str:
        """Return what `dmsetup table` or `dmsetup status` would print."""
        reply = self._ioctl("read its table", TABLE, name, flags)
        count, place = _HEAD.unpack_from(reply)[5], _HEAD.unpack_from(reply)[4]
        first, lines = place, []
        for _ in range(count):
            start, length, _status, following, target = _SPEC.unpack_from(reply, place)
            text = reply[place + _SPEC.size : reply.index(0, place + _SPEC.size)].decode()
            lines.append(f"{start} {length} {target.rstrip(bytes(1)).decode()} {text}")
            place = first + following
        return "\n".join(lines) + "\n"

    def _call(
        self, action: str, number: int, name: str, flags: int = 0, data: bytes = b"", count: int = 0
    ) -> tuple[Any, ...]:
        return _HEAD.unpack_from(self._ioctl(action, number, name, flags, data, count))

    def _ioctl(
        self, action: str, number: int, name: str, flags: int, data: bytes = b"", count: int = 0
    ) -> bytearray:
        head = (4, 0, 0, _SIZE, _HEAD.size, count, 0, flags, QUIET, 0, 0, os.fsencode(name), b"")
        buffer = bytearray(_SIZE)
        _HEAD.pack_into(buffer, 0, *head)
        buffer[_HEAD.size : _HEAD.size + len(data)] = data
        try:
            with self._control() as control:
                fcntl.ioctl(control, 0xC138FD00 | number, buffer)
        except OSError as error:
            raise DeviceError(name, action, error.errno or errno.EIO) from error
        return buffer

    @contextlib.contextmanager
    def _control(self) -> Iterator[int]:
        control = os.open("/dev/mapper/control", os.O_RDWR | os.O_CLOEXEC)
        try:
            yield control
        finally:
            os.close(control)


class IoctlMapper(IoctlReader):
    """`KernelMapper` by ioctl, for what the tests of snapshots call. Its nodes are devtmpfs's."""

    def __init__(
        self, ledger: Ledger, reactor: Reactor | None = None, timeout: float = 30.0
    ) -> None:
        super().__init__(ledger=ledger, reactor=reactor, timeout=timeout)
        self._fd = os.open("/dev/mapper/control", os.O_RDWR | os.O_CLOEXEC)
        self.paths: dict[str, str] = {}

    def close(self) -> None:
        """Close the control node."""
        super().close()
        os.close(self._fd)

    @contextlib.contextmanager
    def _control(self) -> Iterator[int]:
        yield self._fd

    def create(
        self, name: str, table: Table | None = None, *, readonly: bool = False, **_: Any
    ) -> DmDevice:
        """Make a device; see `Mapper.create`."""
        number = self._call("create it", CREATE, name)[10]
        self.paths[name] = f"/dev/dm-{os.minor(number)}"
        try:
            if table is not None:
                self.load(name, table, readonly=readonly)
                self.resume(name)
        except BaseException:
            self.remove(name)
            raise
        return DmDevice(self, name)

    def load(self, name: str, table: Table, *, readonly: bool = False) -> None:
        """Load a table beside the active one; see `Mapper.load`."""
        self.load_text(name, table_text(table), readonly=readonly)

    def load_text(self, name: str, text: str, *, readonly: bool = False) -> None:
        """Load a table that need not be one: its lines as they are, which the kernel judges."""
        specs = [_spec(line) for line in text.splitlines()]
        flags = READONLY if readonly else 0
        self._call("load a table", LOAD, name, flags, b"".join(specs), len(specs))

    def clear(self, name: str) -> None:
        """Drop the loaded table; see `Mapper.clear`."""
        self._call("clear its table", CLEAR, name)

    def suspend(self, name: str, *, flush: bool = True, lockfs: bool = True) -> None:
        """Hold new I/O; see `Mapper.suspend`."""
        flags = SUSPENDED | (0 if flush else NOFLUSH) | (0 if lockfs else SKIP_LOCKFS)
        self._call("suspend it", SUSPEND, name, flags)

    def resume(self, name: str, *, flush: bool = True, lockfs: bool = True) -> None:
        """Let I/O continue; see `Mapper.resume`."""
        flags = (0 if flush else NOFLUSH) | (0 if lockfs else SKIP_LOCKFS)
        self._call("resume it", SUSPEND, name, flags)

    def remove(self, name: str, **_: Any) -> None:
        """Remove a device; udev may have it open for a moment."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._call("remove it", REMOVE, name)
                break
            except DeviceError as error:
                if error.errno != errno.EBUSY:
                    raise
                if time.monotonic() > deadline:
                    raise BusyError(name, []) from error
            time.sleep(0.01)
        del self.paths[name]

    def wait(self, name: str, event: int, *, timeout: float) -> int:
        """Wait for an event; see `Mapper.wait`."""
        deadline = time.monotonic() + timeout
        while True:
            self._call("wait for it", ARM_POLL, name)  # before the look, so that none is missed
            if (events := self.info(name).events) > event:
                return events
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._fd], [], [], left)[0]:
                raise DeadlineError(f"{name}: no event after number {event} in {timeout:g} s")

    def path(self, name: str) -> str:
        """Return the node of a device; see `Mapper.path`."""
        return self.paths[name]


def _spec(line: str) -> bytes:
    """Return a line of a table as the kernel takes it: a struct, the words, zeroes up to 8."""
    start, length, target, *rest = line.split(" ", 3)
    words = rest[0].encode() if rest else b""
    size = -(-(_SPEC.size + len(words) + 1) // 8) * 8
    head = _SPEC.pack(int(start), int(length), 0, size, target.encode())
    return (head + words).ljust(size, b"\0")
