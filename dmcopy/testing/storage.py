"""The disks of one run or one check of `dmcopy.testing.explorer`: in memory, or as files."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from dmcopy.block import BlockDevice, syscalls
from dmcopy.errors import UsageError
from dmcopy.export.base import Place, find
from dmcopy.io import whole
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.io.thread import ReactorThread
from dmcopy.mapper.userspace import UserMapper
from dmcopy.testing.lent import LentDisk
from dmcopy.testing.recording import Cut, Marked, Moment, RecordedDisk, Recording
from dmcopy.units import SECTOR_SHIFT

MODEL: Final = "model"
_PUNCH: Final = syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE


class StorageDisk:
    """A disk of `sectors` by its `name`; all I/O is waited for, positions are in sectors."""

    name: str
    sectors: int

    @property
    def path(self) -> str:
        """Where a program finds it."""
        raise NotImplementedError

    def __fspath__(self) -> str:
        return self.path

    def read(self, sector: int, count: int) -> bytes:
        raise NotImplementedError

    def write(self, sector: int, data: bytes, *, fua: bool = False) -> None:
        """Write whole sectors; durable on return with `fua`."""
        raise NotImplementedError

    def flush(self) -> None:
        """Make everything written so far durable."""
        raise NotImplementedError

    def discard(self, sector: int, count: int) -> None:
        """Discard a range, which reads as zeroes then."""
        raise NotImplementedError


class ModelDisk(StorageDisk):
    """A disk in memory, `device`. In a check its `path` is a file of what it holds now."""

    def __init__(self, reactor: Reactor, device: Device, content: SimulatedDisk) -> None:
        self.name = content.path
        self.sectors = content.sectors
        self.device = device
        self._reactor = reactor
        self._content = content
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def path(self) -> str:
        """A file with a copy of what it holds; what is written there does not come back."""
        if isinstance(self.device, RecordedDisk):
            raise UsageError(
                f"{self.name} is in memory, where no program finds it: say via='fuse' or 'loop'"
            )
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="dmcopy-crash-")
        file = Path(self._folder.name, self.name)
        file.write_bytes(self._content.content)
        return str(file)

    def close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def read(self, sector: int, count: int) -> bytes:
        return whole.read(self._reactor, self.device, sector, count)

    def write(self, sector: int, data: bytes, *, fua: bool = False) -> None:
        whole.write(self._reactor, self.device, sector, data, fua=fua)

    def flush(self) -> None:
        whole.flush(self._reactor, self.device)

    def discard(self, sector: int, count: int) -> None:
        whole.discard(self._reactor, self.device, sector, count)


class FileDisk(StorageDisk):
    """A disk that is the file or node `path`."""

    def __init__(self, name: str, path: str, sectors: int) -> None:
        self.name = name
        self.sectors = sectors
        self._path = path

    @property
    def path(self) -> str:
        return self._path

    def read(self, sector: int, count: int) -> bytes:
        with open(self._path, "rb") as file:
            file.seek(sector << SECTOR_SHIFT)
            return file.read(count << SECTOR_SHIFT)

    def write(self, sector: int, data: bytes, *, fua: bool = False) -> None:
        with open(self._path, "r+b", buffering=0) as file:
            view, at = memoryview(data), sector << SECTOR_SHIFT
            while view:
                done = os.pwrite(file.fileno(), view, at)
                view, at = view[done:], at + done
            if fua:
                os.fsync(file.fileno())

    def flush(self) -> None:
        with open(self._path, "r+b", buffering=0) as file:
            os.fsync(file.fileno())

    def discard(self, sector: int, count: int) -> None:
        with open(self._path, "r+b", buffering=0) as file:
            start, length = sector << SECTOR_SHIFT, count << SECTOR_SHIFT
            syscalls.fallocate(file.fileno(), _PUNCH, start, length)


class Storage:
    """Disks by their names: `storage["cow"]`, or `storage.disk` where there is one.

    Attributes:
        marks: what `mark` was called with, up to now; in a check, up to the power cut.
        mapper: a `UserMapper` whose tables have the disks by their names, or as files by their
            paths.
    """

    def __init__(
        self,
        disks: Mapping[str, StorageDisk],
        mapper: Callable[[], UserMapper],
        marks: tuple[str, ...] = (),
        note: Callable[[Marked], object] | None = None,
    ) -> None:
        self.disks = dict(disks)
        self.marks = marks
        self._make = mapper
        self._mapper: UserMapper | None = None
        self._note = note

    def __getitem__(self, name: str) -> StorageDisk:
        return self.disks[name]

    @property
    def disk(self) -> StorageDisk:
        return next(iter(self.disks.values()))

    @property
    def mapper(self) -> UserMapper:
        """The engine, made when it is asked for, and closed at the end."""
        if self._mapper is None:
            self._mapper = self._make()
        return self._mapper

    def mark(self, text: str) -> None:
        """Note how far the run is, for the check to know what it may expect."""
        if self._note is None:
            raise UsageError("a check marks nothing: what it is told is in `marks`")
        self.marks += (text,)
        self._note(Marked(text))

    def close(self) -> None:
        mapper, self._mapper = self._mapper, None
        if mapper is not None:
            mapper.close()


def _raise(error: Exception) -> None:
    raise error


@contextlib.contextmanager
def recorded_in_memory(recording: Recording, seed: int, block_size: int) -> Iterator[Storage]:
    """Yield disks in memory whose requests overtake each other as `seed` says."""
    with Reactor(SimulatedBackend(seed), stacked=True) as reactor:
        reactor.on_exception = _raise
        disks: dict[str, StorageDisk] = {}
        devices: dict[str, Device] = {}
        for number, name in enumerate(recording.names):
            content = recording.first[number]
            below = SimulatedDisk(len(content) >> SECTOR_SHIFT, name, logical_block_size=block_size)
            below.load(content)
            devices[name] = RecordedDisk(below, reactor, recording, number)
            disks[name] = ModelDisk(reactor, devices[name], below)
        storage = Storage(disks, lambda: _engine(reactor, devices), note=recording.note)
        with contextlib.closing(storage):
            yield storage


@contextlib.contextmanager
def recorded_files(recording: Recording, via: str) -> Iterator[Storage]:
    """Yield disks that are served to programs by the front end `via`: files or nodes.

    Raises MissingError where it does not work here.
    """
    front_end = find(via)
    token = os.urandom(3).hex()
    with (
        tempfile.TemporaryDirectory(prefix="dmcopy-crash-") as folder,
        contextlib.ExitStack() as exits,
    ):
        thread = exits.enter_context(ReactorThread(stacked=True, name="dmcopy-crash"))

        def serve(reactor: Reactor) -> dict[str, StorageDisk]:
            served = front_end(reactor, Place())
            exits.callback(lambda: thread.call(lambda _: served.close()))
            disks: dict[str, StorageDisk] = {}
            for number, name in enumerate(recording.names):
                file = Path(folder, name)
                file.write_bytes(recording.first[number])
                below = exits.enter_context(BlockDevice.open(file, write=True, direct=False))
                disk = RecordedDisk(below, reactor, recording, number)
                path = served.add(f"dmcopy-crash-{token}-{name}", disk)
                disks[name] = FileDisk(name, path, below.sectors)
            return disks

        storage = Storage(thread.call(serve), UserMapper, note=recording.note)
        with contextlib.closing(storage):
            yield storage


class Judge:
    """Makes the disks of one check after the other. Close it at the end."""

    def __init__(self, names: list[str], *, files: bool, block_size: int) -> None:
        self._names = names
        self._files = files
        self._block_size = block_size
        self._backend = SimulatedBackend(0)
        self._reactor = Reactor(self._backend, stacked=True)
        self._reactor.on_exception = _raise

    def close(self) -> None:
        self._reactor.close()

    @contextlib.contextmanager
    def storage(self, moment: Moment, cut: Cut) -> Iterator[Storage]:
        """Yield the disks as a power cut at a moment leaves them."""
        with contextlib.ExitStack() as exits:
            disks: dict[str, StorageDisk] = {}
            make: Callable[[], UserMapper] = UserMapper
            if self._files:
                folder = exits.enter_context(tempfile.TemporaryDirectory(prefix="dmcopy-crash-"))
                for number, name in enumerate(self._names):
                    file, image = Path(folder, name), moment.image(cut, number)
                    file.write_bytes(image)
                    disks[name] = FileDisk(name, str(file), len(image) >> SECTOR_SHIFT)
            else:
                devices: dict[str, Device] = {}
                for name, content in zip(self._names, moment.durable, strict=True):
                    device = LentDisk(content, name, self._block_size)
                    exits.callback(self._give_back, device)
                    for sector, data in moment.kept(cut, len(devices)):
                        device.write(sector, data)
                    devices[name] = device
                    disks[name] = disk = ModelDisk(self._reactor, device, device)
                    exits.callback(disk.close)
                make = lambda: _engine(self._reactor, devices)  # noqa: E731
            storage = Storage(disks, make, moment.marks)
            exits.callback(storage.close)
            yield storage

    def _give_back(self, device: LentDisk) -> None:
        """Take back a disk: what a check has left in flight is done when the next waits for I/O."""
        device.give_back(in_use=self._backend.busy or self._reactor.next_due() is not None)


def _engine(reactor: Reactor, devices: Mapping[str, Device]) -> UserMapper:
    return UserMapper(reactor, open_device=lambda path, _write: devices[path])
