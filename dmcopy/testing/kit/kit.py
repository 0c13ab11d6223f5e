"""The maker of all that a test uses, in one place; at the end everything goes, newest first."""

from __future__ import annotations

import contextlib
import functools
import os
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from dmcopy.closing import Closing
from dmcopy.errors import BusyError, UsageError
from dmcopy.mapper.base import PREFIX
from dmcopy.status import Status
from dmcopy.table import CoreLog, DiskLog, Leg, Linear, SnapshotOrigin, Striped, Table
from dmcopy.table import Mirror as MirrorTarget
from dmcopy.table import Snapshot as SnapshotTarget
from dmcopy.testing.kit.devices import Faults, Mapped, Mirror, ScratchDisk, Snapshot
from dmcopy.testing.kit.environment import Environment
from dmcopy.testing.kit.mounted import unmount
from dmcopy.testing.kit.removal import PATIENCE_SECONDS, TRY_SECONDS, patiently
from dmcopy.units import SECTOR_SHIFT, parse_bytes

AnyDevice: TypeAlias = ScratchDisk | Mapped[Any]
Size: TypeAlias = str | int
BLOCK_SIZES: Final = (512, 1024, 2048, 4096)
_D = TypeVar("_D", bound=Mapped[Any])


class Kit(Closing):
    """Makes disks and mapped devices. A size is text, `"64M"`, or a number of bytes.

    `kit(table)` makes a device of a table. Names are made up: `name` is only their end.
    """

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.disks: list[ScratchDisk] = []
        self.devices: list[Mapped[Any]] = []
        self.patience = PATIENCE_SECONDS
        """For how many seconds at the end a device may be in use while no user can be named."""
        self._prefix = f"{PREFIX}{os.urandom(3).hex()}-"
        self._numbers: dict[str, int] = {}

    @property
    def label(self) -> str:
        """Where this is: model or host."""
        return self.environment.label

    def scratch_disk(
        self, size: Size = "64M", *, serial: str = "", block_size: int = 512
    ) -> ScratchDisk:
        """Make a disk, all zeroes, with blocks of `block_size` bytes."""
        return self._make_disk(size, serial, block_size, None)

    def troubled_disk(
        self, size: Size = "64M", *, serial: str = "", block_size: int = 512, seed: int = 0
    ) -> ScratchDisk:
        """Make a disk whose I/O can be short, late by chance or silently wrong: by its `trouble`.

        `seed`: of that chance. This process serves it, in a guest, too.
        """
        return self._make_disk(size, serial, block_size, seed)

    def scratch_file(self, size: Size = "64M") -> Path:
        """Make a file in memory, all zeroes."""
        self._numbers["file"] = number = self._numbers.get("file", -1) + 1
        file = self.environment.folder / f"file{number}.img"
        with file.open("xb") as made:
            made.truncate(size if isinstance(size, int) else parse_bytes(size))
        return file

    def __call__(self, table: Table | str, *, name: str = "dm") -> Mapped[Status]:
        """Make a device of a table."""
        return self._make(Mapped[Status], table, name)

    def linear(
        self, below: AnyDevice, *, start: int = 0, length: int | None = None
    ) -> Mapped[Status]:
        """Make a device that is `length` sectors of another, from `start`; by default the rest."""
        length = below.sectors - start if length is None else length
        return self(Table.of(length, Linear(below.word, start)), name="linear")

    def striped(self, *below: AnyDevice, chunk_size: int = 128) -> Mapped[Status]:
        """Make a device with stripes of `chunk_size` sectors on two or more others, of one size."""
        each = min(one.sectors for one in below) // chunk_size * chunk_size
        legs = tuple(Leg(one.word, 0) for one in below)
        table = Table.of(each * len(below), Striped(chunk_size, legs))
        return self(table, name="striped")

    def snapshot(
        self,
        origin: AnyDevice | None = None,
        cow: AnyDevice | None = None,
        *,
        chunk_size: int = 8,
        store: str = "P",
    ) -> Snapshot:
        """Make a snapshot, and the device of its origin, to which writes are to go.

        `origin` and `cow`: what the two are kept on; by default disks of 64M, and the COW as large
        as the origin and 1 MiB. `chunk_size` is in sectors; `store` is P, PO or N.
        """
        origin = self.scratch_disk() if origin is None else origin
        if cow is None:
            cow = self.scratch_disk((origin.sectors << SECTOR_SHIFT) + (1 << 20))
        target = SnapshotTarget(origin.word, cow.word, store, chunk_size)
        table = Table.of(origin.sectors, target)
        live = self._origin_of(origin)
        # The first one is there before the device of its origin, so that none need be suspended.
        with contextlib.nullcontext() if live is None else live.paused():
            made = self._make(Snapshot, table, "snapshot")
        made.origin = live or self(_origin_table(origin), name="origin")
        made.cow = cow
        return made

    def mirror(
        self,
        *legs: AnyDevice,
        log: AnyDevice | None = None,
        region_size: int = 1024,
        sync: bool = True,
        features: Sequence[str] = (),
    ) -> Mirror:
        """Make a mirror of two to nine legs; by default two disks of 64M.

        `log`: where its log is kept, by default in memory. `sync` False: the legs are equal.
        """
        legs = legs or (self.scratch_disk(), self.scratch_disk())
        word = None if sync else "nosync"
        kept = CoreLog(region_size, word) if log is None else DiskLog(log.word, region_size, word)
        places = tuple(Leg(leg.word, 0) for leg in legs)
        target = MirrorTarget(kept, places, tuple(features) or None)
        table = Table.of(min(leg.sectors for leg in legs), target)
        made = self._make(Mirror, table, "mirror")
        made.legs = legs
        return made

    def stack(self, tables: Mapping[str, str | Table]) -> dict[str, Mapped[Status]]:
        """Make devices in order; a table calls those before it by their names: `{low}`."""
        made: dict[str, Mapped[Status]] = {}
        for name, table in tables.items():
            text = string.Formatter().vformat(str(table), (), made)
            made[name] = self(text, name=name)
        return made

    def faulty(self, below: AnyDevice | None = None) -> Faults:
        """Make a device that can be made to fail over another, by default a disk of 64M."""
        below = self.scratch_disk() if below is None else below
        table = Table.of(below.sectors, Linear(below.word, 0))
        made = self._make(Faults, table, "faulty")
        made.healthy = made.table
        return made

    def cut_power(self, seed: int | None = None) -> None:
        """Cut the power of all disks, and have it back: what a crash of the machine leaves.

        Of what was not flushed each write is lost, kept or torn by block, as the seed says; None:
        all of it is lost. File systems on our devices are unmounted, what the test has open is
        closed, and each mapped device is made again with the table that it had: so a snapshot or
        mirror begins with what is on its disks. Raises BusyError where a process uses one.
        """
        self.environment.power.off = True
        for one in [*self.devices, *self.disks]:
            one.close()
        unmount(self.words())
        for device in reversed(self.devices):
            device.remove()
        for disk in self.disks:
            self.environment.hide(disk.word)
        self.environment.lose(seed)
        self.environment.power.off, self.environment.power.writes_left = False, None
        for device in self.devices:
            device.create()

    def words(self) -> list[str]:
        """Return where all that there is can be seen by programs."""
        return [self.environment.node(one.word) for one in [*self.devices, *self.disks]]

    def close(self) -> None:
        """Remove everything, newest first. Raises the first error, with others as its notes."""
        errors: list[Exception] = []
        for what in self._steps():
            try:
                what()
            except Exception as error:
                errors.append(error)
        if errors:
            for other in errors[1:]:
                errors[0].add_note(f"and then: {other}")
            raise errors[0]

    def _steps(self) -> list[Callable[[], object]]:
        steps: list[Callable[[], object]] = [
            functools.partial(_remove, device, self.patience) for device in reversed(self.devices)
        ]
        steps += [disk.close for disk in self.disks]
        drop = self.environment.drop_disk
        steps += [functools.partial(drop, disk.word) for disk in reversed(self.disks)]
        return [*steps, self.environment.close]

    def _make_disk(self, size: Size, serial: str, block_size: int, seed: int | None) -> ScratchDisk:
        if block_size not in BLOCK_SIZES:
            raise UsageError(f"blocks of {block_size} bytes: choose one of {BLOCK_SIZES}")
        size_bytes = size if isinstance(size, int) else parse_bytes(size)
        if size_bytes <= 0 or size_bytes % block_size:
            raise UsageError(f"{size}: a disk is one or more whole blocks of {block_size} bytes")
        serial = serial or f"disk{len(self.disks)}"
        if serial in [disk.serial for disk in self.disks]:
            raise UsageError(f"there is a disk {serial} already")
        file = self.environment.folder / serial
        with file.open("xb") as made:
            made.truncate(size_bytes)
        word = self.environment.make_disk(file, block_size, seed)
        self.disks.append(ScratchDisk(self.environment, word, size_bytes >> SECTOR_SHIFT, serial))
        return self.disks[-1]

    def _make(self, kind: type[_D], table: Table | str, name: str) -> _D:
        read = Table.parse(table) if isinstance(table, str) else table
        read = read.with_devices(self.environment.word_of)
        number = self._numbers[name] = self._numbers.get(name, -1) + 1
        made = kind(self.environment, f"{self._prefix}{name}{number or ''}", read)
        made.create()
        self.devices.append(made)
        return made

    def _origin_of(self, below: AnyDevice) -> Mapped[Status] | None:
        """Return the device whose writes are copied to the snapshots of `below`; one for all."""
        table = _origin_table(below)
        return next((device for device in self.devices if device.table == table), None)


def _origin_table(below: AnyDevice) -> Table:
    return Table.of(below.sectors, SnapshotOrigin(below.word))


def _remove(device: Mapped[Any], patience: float) -> None:
    """Remove a device; one that I/O waits for is cut loose first, so that its users let go."""
    try:
        device.remove(timeout=TRY_SECONDS)
    except BusyError:
        device.cut_loose()
        patiently(lambda seconds: device.remove(timeout=seconds), device.word, patience)
