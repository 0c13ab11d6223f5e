"""Both engines behind one handle, each over its own four disks in memory with the same content."""

from __future__ import annotations

import abc
import errno
import os
from collections.abc import Callable
from pathlib import Path

from dmcopy.block import BlockDevice
from dmcopy.block.loop import LoopDevice, attach, detach
from dmcopy.block.syscalls import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, fallocate
from dmcopy.errors import DeviceError
from dmcopy.io import Reactor, whole
from dmcopy.io.region import Device as IoDevice
from dmcopy.ledger import Ledger
from dmcopy.mapper.base import Mapper
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.userspace import NODES, UserMapper
from dmcopy.ondisk.exception_store import Header, Layout, parse_area
from dmcopy.table import Table

from .ioctls import IoctlMapper

SECTORS = 16384
"""Of each disk: 8 MiB."""
DISKS = ("A", "B", "C", "D")
WAIT_SECONDS = 60.0


class Engine(abc.ABC):
    """A mapper, its disks A to D, and I/O on its devices. In tables @A is a disk, @x a device."""

    mapper: Mapper
    reactor: Reactor
    disks: dict[str, str]
    name: str

    def __init__(self, folder: Path) -> None:
        self.files = {disk: folder / disk for disk in DISKS}
        for file in self.files.values():
            file.touch()
            os.truncate(file, SECTORS * 512)

    def close(self) -> None:
        """Remove what is left, the disks too."""
        for file in self.files.values():
            file.unlink()

    def wipe(self) -> None:
        """Zero the disks."""
        for file in self.files.values():
            fd = os.open(file, os.O_RDWR)
            mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
            fallocate(fd, mode, 0, SECTORS * 512)
            os.close(fd)

    # What a disk holds, past every cache

    def peek(self, disk: str, sector: int, count: int) -> bytes:
        """Return the content of a disk."""
        fd = os.open(self.files[disk], os.O_RDONLY)
        try:
            return os.pread(fd, count * 512, sector * 512)
        finally:
            os.close(fd)

    def poke(self, disk: str, sector: int, data: bytes) -> None:
        """Change the content of a disk."""
        fd = os.open(self.files[disk], os.O_RDWR)
        try:
            os.pwrite(fd, data, sector * 512)
        finally:
            os.close(fd)

    def header(self, disk: str) -> Header | None:
        """Return the header of the exception store on a disk."""
        return Header.parse(self.peek(disk, 0, 1))

    def exceptions(self, disk: str) -> list[tuple[int, int]]:
        """Return the exceptions of the store on a disk, (old, new), in their order."""
        header = self.header(disk)
        assert header is not None
        layout, size = Layout(header.chunk_size), header.chunk_size
        found: list[tuple[int, int]] = []
        for area in range(layout.areas_on(SECTORS // size)):
            pairs = parse_area(self.peek(disk, layout.area_location(area) * size, size))
            found += zip(pairs[0::2], pairs[1::2], strict=True)
            if len(pairs) < 2 * layout.per_area:
                break
        return found

    # Tables

    def path(self, name: str) -> str:
        """Return what tables call a disk or device."""
        return self.disks.get(name) or self.mapper.path(name)

    def parse(self, text: str) -> Table:
        """Return the table that `text` says, @A and @x filled in."""
        table = Table.parse(text)
        return table.with_devices(lambda word: self.path(word[1:]) if word[0] == "@" else word)

    def create(self, name: str, text: str, *, readonly: bool = False) -> None:
        """Make a device."""
        self.mapper.create(name, self.parse(text), readonly=readonly)

    def load(self, name: str, text: str, *, readonly: bool = False) -> None:
        """Load a table beside the active one."""
        self.mapper.load(name, self.parse(text), readonly=readonly)

    def swap(self, name: str, text: str, *, readonly: bool = False) -> None:
        """Put another table in place of the active one."""
        self.load(name, text, readonly=readonly)
        self.mapper.suspend(name)
        self.mapper.resume(name)

    def status(self, name: str) -> str:
        """Return the words of the status behind the target's name."""
        return "; ".join(str(line.status) for line in self.mapper.status(name))

    def table(self, name: str, *, inactive: bool = False) -> str:
        """Return the table with disks and devices as `parse` takes them."""
        table = self.mapper.table(name, inactive=inactive)
        return str(table.with_devices(self._short()))

    def events(self, name: str) -> int:
        """Return the number of events so far."""
        return self.mapper.info(name).events

    def wait(self, done: Callable[[], bool], what: str) -> None:
        """Let time pass until `done`."""
        deadline = self.reactor.time() + WAIT_SECONDS
        while not done():
            assert self.reactor.time() < deadline, f"waited in vain for {what}"
            self.reactor.call_later(0.002, lambda: None)
            self.reactor.step(0.002)

    def wait_merged(self, name: str) -> None:
        """Wait until a merge has ended, well or not."""

        def ended() -> bool:
            numbers = self.status(name).replace("/", " ").split()
            return not numbers[0].isdecimal() or numbers[0] == numbers[2]

        self.wait(ended, f"the merge of {name}")

    # I/O

    @abc.abstractmethod
    def device(self, name: str) -> IoDevice:
        """Return a device to do I/O on."""

    @abc.abstractmethod
    def remove(self, name: str) -> None:
        """Remove a device."""

    def read(self, name: str, sector: int, count: int) -> bytes:
        """Read from a device. Raises DeviceError."""
        return whole.read(self.reactor, self.device(name), sector, count)

    def write(self, name: str, sector: int, data: bytes) -> None:
        """Write to a device. Raises DeviceError."""
        whole.write(self.reactor, self.device(name), sector, data)

    def flush(self, name: str) -> None:
        """Flush a device. Raises DeviceError."""
        whole.flush(self.reactor, self.device(name))

    def discard(self, name: str, sector: int, count: int) -> None:
        """Discard a range. Raises DeviceError."""
        whole.discard(self.reactor, self.device(name), sector, count)

    @abc.abstractmethod
    def _short(self) -> Callable[[str], str]:
        """Return what turns the mapper's names of devices into @A and @x."""


class KernelEngine(Engine):
    """The kernel, over loop devices."""

    name = "kernel"
    mapper: KernelMapper

    def __init__(self, folder: Path, *, dmsetup: bool = False) -> None:
        super().__init__(folder)
        ledger = Ledger(folder / "ledger.jsonl")
        self.mapper = KernelMapper(ledger=ledger) if dmsetup else IoctlMapper(ledger)
        self.reactor = Reactor()
        self._loops: dict[str, LoopDevice] = {
            disk: attach(file) for disk, file in self.files.items()
        }
        self.disks = {disk: loop.path for disk, loop in self._loops.items()}
        self._open: dict[str, BlockDevice] = {}

    def close(self) -> None:
        """Remove what is left; see `Engine.close`."""
        for loop in self._loops.values():
            detach(loop)
        self.reactor.close()
        if isinstance(self.mapper, IoctlMapper):
            self.mapper.close()
        self.mapper.ledger.path.unlink(missing_ok=True)
        super().close()

    def device(self, name: str) -> IoDevice:
        """Return a device to do I/O on: kept open until it is given another table."""
        if name not in self._open:
            self._open[name] = open_anyway(self.mapper.path(name))
        return self._open[name]

    def load(self, name: str, text: str, *, readonly: bool = False) -> None:
        """Load a table beside the active one, which may be of another size."""
        super().load(name, text, readonly=readonly)
        self._forget(name)

    def remove(self, name: str) -> None:
        """Remove a device."""
        self._forget(name)
        self.mapper.remove(name)

    def _forget(self, name: str) -> None:
        if name in self._open:
            self._open.pop(name).close()

    def _short(self) -> Callable[[str], str]:
        numbers = {_number(path): f"@{disk}" for disk, path in self.disks.items()}
        if isinstance(self.mapper, IoctlMapper):
            numbers |= {_number(path): f"@{name}" for name, path in self.mapper.paths.items()}
        else:
            numbers |= {info.devno: f"@{info.name}" for info in self.mapper.ls()}
        return lambda word: numbers.get(word, word)


class UserEngine(Engine):
    """dmcopy's own engine, over plain files, or over the disks of the kernel's when given that."""

    name = "user"
    mapper: UserMapper

    def __init__(self, folder: Path | None = None, kernel: KernelEngine | None = None) -> None:
        if kernel is not None:
            self.files, self.disks = kernel.files, kernel.disks
        else:
            assert folder is not None
            super().__init__(folder)
            self.disks = {disk: str(file) for disk, file in self.files.items()}
        self._owns_disks = kernel is None
        self.mapper = UserMapper()
        self.reactor = self.mapper.reactor

    def close(self) -> None:
        """Remove what is left; see `Engine.close`."""
        self.mapper.close()
        if self._owns_disks:
            super().close()

    def device(self, name: str) -> IoDevice:
        """Return a device to do I/O on."""
        return self.mapper.open(name)

    def remove(self, name: str) -> None:
        """Remove a device."""
        self.mapper.remove(name)

    def _short(self) -> Callable[[str], str]:
        paths = {path: f"@{disk}" for disk, path in self.disks.items()}
        return lambda word: paths.get(word) or f"@{word.removeprefix(NODES)}"


def open_anyway(path: str) -> BlockDevice:
    """Open a node for writing, though it may be read-only: the kernel is to refuse each write."""
    return BlockDevice(path, os.open(path, os.O_RDWR | os.O_CLOEXEC), read_only=False, direct=None)


def errno_of(action: Callable[[], object]) -> int:
    """Return the errno that an action fails with, 0 when it does not."""
    try:
        action()
    except DeviceError as error:
        return error.errno
    return 0


def error_name(action: Callable[[], object]) -> str:
    """Return the name of the errno that an action fails with, empty when it does not."""
    number = errno_of(action)
    return errno.errorcode[number] if number else ""


def pattern(seed: int, sectors: int) -> bytes:
    """Return sectors that tell where they come from."""
    return b"".join(b"%08x.%06x;" % (seed, sector) * 32 for sector in range(sectors))


def _number(path: str) -> str:
    status = os.stat(path)
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
