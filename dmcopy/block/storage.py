"""Where bytes of a device really are: under partitions, loop devices and mapped devices.

Two paths can lead to the same bytes without being the same device: /dev/sda and /dev/sda1, a file
and the loop device that is made of it, a disk and a linear mapping of it. Devices that map
byte by byte are followed; of others (a thin volume, RAID) at least the devices below are known.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from dmcopy.block import backing, sysfs
from dmcopy.block.devno import parse_devno, split_devno
from dmcopy.block.processes import block_identity
from dmcopy.block.sysfs import LIVE, Roots
from dmcopy.errors import DmcopyError
from dmcopy.units import SECTOR_SHIFT

if TYPE_CHECKING:
    from dmcopy.table import Table, TableLine, Target

_DEEPEST: Final = 16  # devices cannot be made in a ring, but a wrong reading must end
_DMSETUP_SECONDS: Final = 10.0

# Devices of these lie over each other by design, and keep what they have of the same storage apart.
_SHARING: Final = {"thin", "snapshot", "snapshot-merge", "snapshot-origin"}


class StorageExtent(NamedTuple):
    """The bytes from `start` to `end` of a device or file; `identity` as in `block.processes`.

    `below` is where they are, when that is not known to the byte: somewhere there. `sharing`: what
    is below is shared with other devices, which are kept apart.
    """

    identity: Hashable
    start: int
    end: int
    sharing: bool = False
    below: tuple[StorageExtent, ...] = ()

    def touches(self, other: StorageExtent) -> bool:
        """Return whether the two have a byte in common, or may have."""
        if self.identity == other.identity:
            return self.start < other.end and other.start < self.end
        if self.sharing and other.sharing:
            return False
        under = any(low.touches(other) for low in self.below)
        return under or any(self.touches(low) for low in other.below)


def extents(
    identity: Hashable, start: int, length: int, roots: Roots = LIVE
) -> tuple[StorageExtent, ...]:
    """Follow a run of bytes of a device or file down to the disks and files that hold it."""
    return tuple(_Search(roots).follow(identity, start, length, 0))


class _Search:
    def __init__(self, roots: Roots) -> None:
        self._roots = roots

    def follow(
        self, identity: Hashable, start: int, length: int, deep: int
    ) -> Iterator[StorageExtent]:
        here = StorageExtent(identity, start, start + length)
        name = self._name(identity) if deep < _DEEPEST else ""
        folder = sysfs.directory(name, self._roots)
        disk = sysfs.parent(name, self._roots)
        made_of = backing.of(name, self._roots)
        table = _table(name, self._roots)
        if disk:
            first = sysfs.read_int(f"{folder}/start") << SECTOR_SHIFT
            yield from self.follow(self._identity(disk), first + start, length, deep + 1)
        elif made_of is not None and made_of.identity is not None:
            yield from self.follow(made_of.identity, made_of.offset + start, length, deep + 1)
        elif table is not None:
            yield from self._mapped(here, name, table, deep)
        elif length:
            yield here._replace(below=self._slaves(name, deep))

    def _mapped(
        self, whole: StorageExtent, name: str, table: Table, deep: int
    ) -> Iterator[StorageExtent]:
        for line in table:
            first = line.start << SECTOR_SHIFT
            start, end = max(whole.start, first), min(whole.end, line.end << SECTOR_SHIFT)
            if start >= end:
                continue
            places = _places(line.target)
            if places is None:
                sharing = line.target_name in _SHARING
                below = self._areas(line, deep) or self._slaves(name, deep)
                yield StorageExtent(whole.identity, start, end, sharing, below)
                continue
            for device, offset in places:
                there = (offset << SECTOR_SHIFT) + start - first
                yield from self.follow(_of_table(device), there, end - start, deep + 1)

    def _areas(self, line: TableLine, deep: int) -> tuple[StorageExtent, ...]:
        """Return what a line uses in a way of its own; nothing for a target that is not known."""
        from dmcopy.table import Striped

        if not isinstance(line.target, Striped):
            return self._whole(map(_of_table, line.target.devices), deep)
        length = (line.length // len(line.target.legs)) << SECTOR_SHIFT
        legs = [(_of_table(leg.device), leg.offset << SECTOR_SHIFT) for leg in line.target.legs]
        return tuple(low for leg in legs for low in self.follow(*leg, length, deep + 1))

    def _slaves(self, name: str, deep: int) -> tuple[StorageExtent, ...]:
        return self._whole(map(self._identity, sysfs.slaves(name, self._roots)), deep)

    def _whole(self, devices: Iterable[Hashable], deep: int) -> tuple[StorageExtent, ...]:
        sizes = [(device, self._size(device)) for device in devices]
        return tuple(low for at, size in sizes for low in self.follow(at, 0, size, deep + 1))

    def _size(self, identity: Hashable) -> int:
        folder = sysfs.directory(self._name(identity), self._roots)
        return sysfs.read_int(f"{folder}/size") << SECTOR_SHIFT

    def _name(self, identity: Hashable) -> str:
        if isinstance(identity, tuple) and identity[0] == "block":
            return sysfs.name_of(split_devno(identity[1]), self._roots)
        return ""

    def _identity(self, name: str) -> Hashable:
        number = sysfs.devno(name, self._roots)
        return block_identity(number) if number else ("gone", name)


def _places(target: Target) -> list[tuple[str, int]] | None:
    """Return where the first sector of a line is; None where the others do not follow on it."""
    from dmcopy.table import Crypt, Delay, Dust, Ebs, Error, Flakey, Linear, Mirror, Zero

    match target:
        case Linear() | Crypt() | Flakey() | Dust() | Ebs():
            return [(target.device, target.offset)]
        case Mirror():
            return [(leg.device, leg.offset) for leg in target.legs]
        case Delay():
            ways = filter(None, (target.read, target.write, target.flush))
            return [(way.device, way.offset) for way in ways]
        case Zero() | Error():
            return []
    return None


def _of_table(device: str) -> Hashable:
    """Return the identity of a table's device; the kernel prints numbers."""
    return block_identity(parse_devno(device)) if ":" in device else ("gone", device)


def _table(name: str, roots: Roots) -> Table | None:
    """Return the table of a mapped device; None for what is none, or may not be asked.

    Not through a mapper, which is above this layer: every opening of a device asks this.
    """
    number = sysfs.devno(name, roots)
    if number is None or not os.path.isdir(f"{sysfs.directory(name, roots)}/dm"):
        return None
    # Here and not above: there is rarely a mapped device, and subprocess takes long to import.
    from dmcopy.block import tools
    from dmcopy.table import Table

    which = ["--major", str(number[0]), "--minor", str(number[1])]
    try:
        done = tools.run(["dmsetup", "table", *which], timeout=_DMSETUP_SECONDS)
        return Table.read(done.stdout) if done.returncode == 0 else None
    except DmcopyError:
        return None
