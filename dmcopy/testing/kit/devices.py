"""What the fixtures return: disks and mapped devices, with a path for programs.

In a table write the device itself, `f"0 8192 linear {disk} 0"`; a program gets it as an argument,
`subprocess.run(["mkfs.ext4", device])`, or by its `path`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from dmcopy.closing import Closing
from dmcopy.errors import ClosedError, DeadlineError, UsageError
from dmcopy.io import whole
from dmcopy.io.region import Device
from dmcopy.mapper.faults import Faulty, Range
from dmcopy.status import MirrorStatus, SnapshotStatus, Status, StatusLine
from dmcopy.table import Error, Table

if TYPE_CHECKING:
    from dmcopy.mapper.base import DmInfo, Mapper
    from dmcopy.testing.kit.environment import Environment
    from dmcopy.testing.troubled import TroubledDisk

_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.02
S = TypeVar("S", bound=Status)
_T = TypeVar("_T")


class Opened(Closing):
    """A device that a test has open for I/O past every cache: sectors, as in a `with` block.

    Each call waits for its I/O, 30 s at most. Raises DeviceError with the kernel's errno.
    """

    def __init__(self, environment: Environment, device: Device) -> None:
        self._environment = environment
        self._device = device
        self._closed = False

    @property
    def sectors(self) -> int:
        """The size in sectors."""
        return self._device.sectors

    @property
    def logical_block_size(self) -> int:
        """The smallest unit of I/O, in bytes."""
        return self._device.logical_block_size

    def read(self, sector: int, count: int) -> bytes:
        """Return the content of `count` sectors."""
        return self._perform(lambda to: whole.read(to, self._device, sector, count))

    def write(self, sector: int, data: bytes, *, fua: bool = False) -> None:
        """Write whole sectors; with `fua` they are durable when this returns."""
        self._perform(lambda to: whole.write(to, self._device, sector, data, fua=fua))

    def flush(self) -> None:
        """Make everything written so far durable."""
        self._perform(lambda to: whole.flush(to, self._device))

    def zero_out(self, sector: int, count: int) -> None:
        """Make a range read as zeroes."""
        self._perform(lambda to: whole.zero(to, self._device, sector, count))

    def discard(self, sector: int, count: int) -> None:
        self._perform(lambda to: whole.discard(to, self._device, sector, count))

    def close(self) -> None:
        """Close it: a mapped device that is open cannot be removed."""
        close = getattr(self._device, "close", None)
        if not self._closed and close is not None:
            self._environment.perform(lambda _: close())
        self._closed = True

    def _perform(self, what: Callable[[Any], _T]) -> _T:
        if self._closed:
            raise ClosedError(
                f"{self._device.path}: it was closed, or its power cut: open it again"
            )
        return self._environment.perform(what)


class _Openable:
    """What disks and mapped devices have in common. `word`: by which tables call it."""

    def __init__(self, environment: Environment, word: str) -> None:
        self._environment = environment
        self._handles: list[Opened] = []
        self.word = word

    def __str__(self) -> str:
        return self.word

    def __fspath__(self) -> str:
        return self.path

    @property
    def path(self) -> str:
        """Where programs find it: a node; a file where only the model's devices can be that."""
        return self._environment.path(self.word)

    def open(self) -> Opened:
        """Open it for I/O; it is closed with a `with` block, or at the end of the test."""
        handle = Opened(self._environment, self._environment.device(self.word))
        self._handles.append(handle)
        return handle

    def close(self) -> None:
        """Close what the test has open of it."""
        while self._handles:
            self._handles.pop().close()


class ScratchDisk(_Openable):
    """A scratch disk of `sectors`. `serial`: what the test called it, or disk0, disk1 …."""

    def __init__(self, environment: Environment, word: str, sectors: int, serial: str) -> None:
        super().__init__(environment, word)
        self.sectors = sectors
        self.serial = serial

    def __repr__(self) -> str:
        return f"<ScratchDisk {self.serial} of {self.sectors} sectors at {self.word}>"

    @property
    def trouble(self) -> TroubledDisk:
        """What can be wrong with it, if `troubled_disk` has made it: `trouble.short(Op.READ)`."""
        try:
            return self._environment.troubles[self.word]
        except KeyError:
            raise UsageError(f"{self.serial}: only a troubled_disk can have trouble") from None


class Mapped(_Openable, Generic[S]):
    """A mapped device. `S` is the type of its status."""

    def __init__(self, environment: Environment, name: str, table: Table) -> None:
        super().__init__(environment, environment.word(name))
        self.name = name
        self.table = table
        """The table that it has, or will have after the next resume."""

    def __repr__(self) -> str:
        return f"<Mapped {self.name}>"

    @property
    def sectors(self) -> int:
        """The size in sectors."""
        return self.table.length

    @property
    def info(self) -> DmInfo:
        """What the engine knows of it: events, open count, whether it is suspended."""
        return self._environment.call(lambda mapper: mapper.info(self.name))

    def status(self) -> S:
        """Return the status of the first line of the table, which for most devices is all."""
        return cast(S, self.statuses()[0].status)

    def statuses(self) -> tuple[StatusLine, ...]:
        """Return the status of every line of the table."""
        return self._environment.call(lambda mapper: mapper.status(self.name))

    @contextlib.contextmanager
    def paused(self, *, flush: bool = True) -> Iterator[None]:
        """Suspend it for the length of a `with` block; what is loaded meanwhile is then active."""
        self.suspend(flush=flush)
        try:
            yield
        finally:
            self.resume()

    def swap(self, table: Table | str, *, flush: bool = True) -> None:
        """Replace the table under suspend; after an error the old one stays."""
        new = self._table(table)
        self._environment.call(
            lambda mapper: mapper.swap(self.name, new, flush=flush, lockfs=flush)
        )
        self.table = new

    def load(self, table: Table | str) -> None:
        """Load a table, which the next resume makes active."""
        new = self._table(table)
        self._environment.call(lambda mapper: mapper.load(self.name, new))
        self.table = new

    def suspend(self, *, flush: bool = True) -> None:
        """Hold new I/O, and wait for what is in flight; without `flush` keep what is queued."""
        self._environment.call(lambda mapper: mapper.suspend(self.name, flush=flush, lockfs=flush))

    def resume(self) -> None:
        self._environment.call(lambda mapper: mapper.resume(self.name))

    def message(self, *words: str, sector: int = 0) -> str:
        """Send words to the target at `sector`; return its answer."""
        return self._environment.call(
            lambda mapper: mapper.message(self.name, *words, sector=sector)
        )

    def wait(self, event: int, *, timeout: float = _SECONDS) -> int:
        """Wait until the event number (`info.events`) is another than `event`; return it."""
        return self._environment.call(lambda mapper: mapper.wait(self.name, event, timeout=timeout))

    def create(self) -> None:
        """Make the device on the engine, with the table that it has here."""
        self._environment.call(lambda mapper: mapper.create(self.name, self.table))

    def remove(self, *, timeout: float | None = None) -> None:
        """Remove the device from the engine. Raises BusyError naming its users.

        `timeout`: how many seconds they have to end, on the host; None: 30.
        """
        self.close()
        self._environment.hide(self.word)
        self._environment.call(lambda mapper: mapper.remove(self.name, timeout=timeout))

    def cut_loose(self) -> None:
        """End all I/O that waits for the device with EIO: nothing is flushed."""
        failed = Table.of(self.table.length or 8, Error())
        self._environment.call(
            lambda mapper: mapper.swap(self.name, failed, flush=False, lockfs=False)
        )

    def _table(self, table: Table | str) -> Table:
        read = Table.parse(table) if isinstance(table, str) else table
        return read.with_devices(self._environment.word_of)


class Snapshot(Mapped[SnapshotStatus]):
    """A snapshot of `origin`: what is written to that device is copied to the disk `cow` first."""

    origin: Mapped[Status]
    cow: _Openable


class Mirror(Mapped[MirrorStatus]):
    """A mirror. `legs`: what it is made of."""

    legs: tuple[_Openable, ...] = ()

    def wait_in_sync(self, timeout: float = _SECONDS) -> None:
        """Wait until all regions are in sync. Raises DeadlineError."""
        deadline = time.monotonic() + timeout
        while not self.status().in_sync:
            if time.monotonic() > deadline:
                raise DeadlineError(f"{self.name} is not in sync after {timeout:g} s")
            self._environment.call(lambda mapper: mapper.sleep(_POLL_SECONDS))


class Faults(Mapped[Status]):
    """A device over a disk whose sectors can be made to fail, and `restore`d.

    A range is `"from:count"` or `(from, count)`, in sectors; without one it is the whole device. A
    later fault wins over an earlier one. I/O that is queued meets the fault.
    """

    def error(self, *ranges: Range) -> None:
        """Fail every read and write with EIO."""
        self._put(lambda faulty: faulty.error(*ranges))

    def delay(self, milliseconds: int, *ranges: Range) -> None:
        """Delay reads, writes and flushes."""
        self._put(lambda faulty: faulty.delay(milliseconds, milliseconds, *ranges))

    def write_error(self, *ranges: Range) -> None:
        """Fail every write with EIO; reads are good."""
        self._put(lambda faulty: faulty.write_error(*ranges))

    def drop_writes(self, *ranges: Range) -> None:
        """Drop writes that seem to succeed; reads give the old data."""
        self._put(lambda faulty: faulty.drop_writes(*ranges))

    def corrupt(self, *ranges: Range, byte: int = 0, value: int = 0xA5) -> None:
        """Make byte number `byte` of every write `value`: silently, what is then read has it."""
        self._put(lambda faulty: faulty.corrupt(*ranges, byte=byte, value=value))

    def restore(self, *ranges: Range) -> None:
        """Make the ranges good again."""
        self._put(lambda faulty: faulty.restore(*ranges))

    healthy: Table

    def _put(self, what: Callable[[Faulty], None]) -> None:
        def put(mapper: Mapper) -> Table:
            faulty = Faulty(mapper.handle(self.name), self.healthy)
            faulty.table = self.table
            what(faulty)
            return faulty.table

        self.table = self._environment.call(put)
