"""A mapped device that is open for I/O, the same on every engine: `Mapper.open` returns one."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

from dmcopy.closing import Closing
from dmcopy.io import whole
from dmcopy.io.reactor import Reactor
from dmcopy.io.stacked import StackedDevice
from dmcopy.status import Status, StatusLine
from dmcopy.table import Table


class Tells(Protocol):
    """What tells of devices by their names: a `Mapper`."""

    def status(self, name: str, *, flush: bool = True) -> tuple[StatusLine, ...]:
        """Return the status of each line of the active table."""

    def table(self, name: str, *, inactive: bool = False) -> Table:
        """Return the active table, or the loaded one."""


class MappedIo(Closing, StackedDevice):
    """A mapped device of `mapper` that is open, and closed at the end of a `with` block.

    `read`, `write`, `flush`, `zero_out` and `discard` wait for the I/O, `timeout` seconds at most,
    and only outside of callbacks. I/O that was given up may still be done.

    It is a `dmcopy.io.Device` on `reactor`, so regions are made of it, and kcopyd copies to and
    from it. `submit` is for programs that have more than one request in flight: a request is not
    checked, and what the engine says to it is its `error`.
    """

    mapper: Tells
    name: str
    path: str
    reactor: Reactor
    timeout: float

    @property
    def sectors(self) -> int:
        """The size of the active table."""
        raise NotImplementedError

    @property
    def logical_block_size(self) -> int:
        """The smallest unit of I/O, in bytes."""
        raise NotImplementedError

    @property
    def read_only(self) -> bool:
        """Whether the active table was loaded read-only."""
        raise NotImplementedError

    @property
    def identity(self) -> Hashable:
        """Equal for two handles of the same device."""
        raise NotImplementedError

    def fileno(self) -> int:
        """The descriptor of the kernel's node. Raises OSError where there is none: in userspace."""
        raise NotImplementedError

    def read(self, sector: int, count: int) -> bytes:
        """Return the content of `count` sectors. Raises UsageError, DeviceError, DeadlineError."""
        return whole.read(self.reactor, self, sector, count, timeout=self.timeout)

    def write(self, sector: int, data: bytes | memoryview, *, fua: bool = False) -> None:
        """Write whole sectors. Raises UsageError, DeviceError, DeadlineError."""
        whole.write(self.reactor, self, sector, data, fua=fua, timeout=self.timeout)

    def flush(self) -> None:
        """Make everything written so far durable. Raises DeviceError, DeadlineError."""
        whole.flush(self.reactor, self, timeout=self.timeout)

    def zero_out(self, sector: int, count: int) -> None:
        """Make a range read as zeroes. Raises UsageError, DeviceError, DeadlineError."""
        whole.zero(self.reactor, self, sector, count, timeout=self.timeout)

    def discard(self, sector: int, count: int) -> None:
        """Discard a range. Raises UsageError, DeviceError (EOPNOTSUPP), DeadlineError."""
        whole.discard(self.reactor, self, sector, count, timeout=self.timeout)

    @property
    def status(self) -> Status:
        """The status of the first line of the table, which for most devices is the only one."""
        return self.mapper.status(self.name)[0].status

    @property
    def table(self) -> Table:
        return self.mapper.table(self.name)

    def close(self) -> None:
        """Close the device. May be called again. I/O that was given up may keep it busy."""
