"""Who keeps a device or file busy: mounts, swap, dm and md, loop devices, locks, processes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from dmcopy.block import backing, mounts, processes, sysfs
from dmcopy.block.devno import DevNo, split_devno
from dmcopy.block.processes import Identity, block_identity
from dmcopy.block.sysfs import LIVE, Roots
from dmcopy.errors import DeviceError, UsageError
from dmcopy.units import SECTOR_SHIFT


class Holder(NamedTuple):
    """A user of a device: a process, a mount, a device above. `str()` gives one phrase.

    `kind` is mount, swap, dm, md, stacked (another device on top), loop, lock or process; `name`
    the mount point, dm name, node or command; `on` the kernel name of the device that is held,
    which may be a partition of the one asked for, or the disk that it is a partition of.
    """

    kind: str
    name: str
    on: str = ""
    pid: int | None = None
    note: str = ""

    @property
    def only_looks(self) -> bool:
        """Whether it is udev, or what udev has started: it looks at the device, and is gone."""
        return self.kind in ("process", "lock") and processes.is_of_udev(self.pid or 0)

    def __str__(self) -> str:
        match self.kind:
            case "mount":
                phrase = f"the file system mounted on {self.name}"
            case "swap":
                phrase = "swap"
            case "lock":
                phrase = f"a lock of process {self.pid}"
            case "process":
                phrase = f"process {self.pid}"
            case _:
                phrase = f"{self.kind} device {self.name}"
        if self.pid is not None and self.kind != "mount":
            itself = "this process itself" if self.pid == os.getpid() else ""
            return f"{phrase} ({', '.join(filter(None, [self.name, itself, self.note]))})"
        return f"{phrase} ({self.note})" if self.note else phrase


def who(path: str, *, roots: Roots = LIVE) -> list[Holder]:
    """Return the users of the block device or regular file at `path`; an empty list if it has none.

    For a disk this covers its partitions, and for a partition what holds the whole disk, or a part
    of it that has sectors of the partition. Processes
    of other users are seen by root only. Raises DeviceError when there is nothing at `path`, and
    UsageError when it is neither.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise DeviceError(path, "look at it", error.errno or 0) from error
    if not stat.S_ISBLK(status.st_mode) and not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{path} is neither a block device nor a regular file")
    if stat.S_ISREG(status.st_mode):
        return [*file_users(path, roots=roots), *_processes({path: ""}, roots)]
    name = sysfs.name_of(split_devno(status.st_rdev), roots)
    nodes = {
        sysfs.node(member, roots): _note(member, name, roots) for member in _family(name, roots)
    }
    return [*device_users(name, roots=roots), *_processes({**nodes, path: ""}, roots)]


def device_users(name: str, *, roots: Roots = LIVE) -> list[Holder]:
    """Return what the kernel does with the block device of this kernel name: all but processes."""
    if not name:  # a node that no driver is behind any more
        return []
    found = [user for member in _family(name, roots) for user in _on_device(member, name, roots)]
    disk = sysfs.parent(name, roots)
    if disk:
        found += [*_stacked(disk, name, roots), *_loops_of_disk(name, roots)]
    return [*found, *_under_loop(name, roots)]


def loop_users(name: str, *, roots: Roots = LIVE) -> list[Holder]:
    """Return those of `device_users` that an exclusive open does not see.

    They are the loop devices that are made of it, and the users of what a loop device is made of.
    The rest takes longer to find: a mount may be in the namespace of any process.
    """
    found = [
        user
        for member in _family(name, roots)
        for user in _loops(_identity(member, roots), member, _note(member, name, roots), roots)
    ]
    return [*found, *_loops_of_disk(name, roots), *_under_loop(name, roots)]


def file_users(path: str, *, roots: Roots = LIVE) -> list[Holder]:
    """Return what the kernel does with a regular file: loop devices, swap, locks."""
    identity = processes.identity_at(path)
    return [*_loops(identity, "", "", roots), *_swaps(path, "", "", roots), *_locks(path, roots)]


def _family(name: str, roots: Roots) -> list[str]:
    return [name, *sysfs.partitions(name, roots)] if name else []


def _on_device(name: str, asked: str, roots: Roots) -> Iterator[Holder]:
    note = _note(name, asked, roots)
    yield from _mounted(name, note, roots)
    yield from _stacked(name, asked, roots)
    yield from _loops(_identity(name, roots), name, note, roots)


def _mounted(name: str, note: str, roots: Roots) -> Iterator[Holder]:
    yield from _mounts(name, note, roots)
    yield from _swaps(sysfs.node(name, roots), name, note, roots)


def _note(name: str, asked: str, roots: Roots) -> str:
    """Return how the device that is held relates to the one that was asked for."""
    if name == asked:
        return ""
    kind = "partition" if sysfs.parent(name, roots) == asked else "whole disk"
    return f"{kind} {name}"


def mount_points(roots: Roots = LIVE, pid: str = "self") -> dict[DevNo, list[str]]:
    """Return the mount points of each device, as the process `pid` sees them."""
    points: dict[DevNo, list[str]] = {}
    for mount in mounts.parse_mountinfo(sysfs.read(f"{roots.proc}/{pid}/mountinfo")):
        number: DevNo | None = mount.devno
        if mount.devno[0] == 0 and mount.source.startswith("/"):  # btrfs: the source tells
            number = _number_at(mount.source)
        if number:
            points.setdefault(number, []).append(mount.point)
    return points


def _mounts(name: str, note: str, roots: Roots) -> list[Holder]:
    members = sysfs.btrfs_siblings(name, roots) | {name}
    numbers = [number for member in members if (number := sysfs.devno(member, roots))]
    points = _points(numbers, roots, "self")
    if points:
        return [Holder("mount", point, name, None, note) for point in points]
    # Nothing here: it may be mounted in a container, which /proc/self does not show.
    for pid in processes.in_other_namespaces(roots):
        points = _points(numbers, roots, str(pid))
        if points:
            where = f"in the mount namespace of process {pid} ({processes.command(pid, roots)})"
            together = ", ".join(filter(None, [note, where]))
            return [Holder("mount", point, name, pid, together) for point in points]
    return []


def _points(numbers: list[DevNo], roots: Roots, pid: str) -> list[str]:
    table = mount_points(roots, pid)
    return [point for number in numbers for point in table.get(number, ())]


def _number_at(path: str) -> DevNo | None:
    identity = processes.identity_at(path)
    if identity is None or identity[0] != "block":
        return None
    return split_devno(identity[1])


def _swaps(path: str, name: str, note: str, roots: Roots) -> list[Holder]:
    areas = mounts.parse_swaps(sysfs.read(f"{roots.proc}/swaps"))
    return [Holder("swap", path, name, None, note) for area in areas if _same(area, path)]


def _same(one: str, other: str) -> bool:
    return one == other or (
        (identity := processes.identity_at(one)) is not None
        and identity == processes.identity_at(other)
    )


def _stacked(name: str, asked: str, roots: Roots) -> Iterator[Holder]:
    note = _note(name, asked, roots)
    for top in sysfs.holders(name, roots):
        folder = sysfs.directory(top, roots)
        dm_name = sysfs.read(f"{folder}/dm/name")
        kind = "dm" if dm_name else "md" if os.path.isdir(f"{folder}/md") else "stacked"
        together = ", ".join(filter(None, [top if dm_name else "", note]))
        yield Holder(kind, dm_name or top, name, None, together)


def _identity(name: str, roots: Roots) -> Identity | None:
    number = sysfs.devno(name, roots)
    return block_identity(number) if number else None


def _loops(identity: Identity | None, name: str, note: str, roots: Roots) -> list[Holder]:
    found = backing.loops_over(identity, roots)
    return [Holder("loop", sysfs.node(one.loop, roots), name, None, note) for one in found]


def _loops_of_disk(name: str, roots: Roots) -> list[Holder]:
    """Return the loop devices that are made of a partition's disk and have sectors of it."""
    disk = sysfs.parent(name, roots)
    return [
        Holder("loop", sysfs.node(one.loop, roots), disk, None, _note(disk, name, roots))
        for one in backing.loops_over(_identity(disk, roots), roots)
        if one.overlaps(*_place(name, roots))
    ]


def _under_loop(name: str, roots: Roots) -> Iterator[Holder]:
    """Yield the users of the same bytes below a loop device, or a partition of one.

    That is what it is made of, or another loop device that is made of the same: the loop driver
    claims nothing below.
    """
    disk = sysfs.parent(name, roots) or name
    made_of = backing.of(disk, roots)
    if made_of is None or made_of.identity is None:
        return
    start, length = _place(name, roots)
    start += made_of.offset
    others = [one for one in backing.loops_over(made_of.identity, roots) if one.loop != disk]
    found = [one.loop for one in others if one.overlaps(start, length)]
    if made_of.identity[0] == "block":
        number = made_of.identity[1]
        lower = sysfs.name_of(split_devno(number), roots)
        for member in _family(lower, roots):
            first, size = (0, start + 1) if member == lower else _place(member, roots)
            if first < start + length and start < first + size:
                found.append(member)
        yield from _under_loop(lower, roots)
    for user in found:
        yield from _mounted(user, f"on {user}, the same storage", roots)
        yield from _stacked(user, user, roots)


def _place(name: str, roots: Roots) -> tuple[int, int]:
    """Return where a partition is on its disk, and how long, in bytes; a disk begins at 0."""
    folder = sysfs.directory(name, roots)
    start, length = (
        sysfs.read_int(f"{folder}/{word}") << SECTOR_SHIFT for word in ("start", "size")
    )
    return start, length


def _locks(path: str, roots: Roots) -> list[Holder]:
    """Return who has a lock on a file. btrfs shows other device numbers here than stat(2) does."""
    identity = processes.identity_at(path)
    if identity is None or len(identity) != 3:
        return []
    _, device, inode = identity
    found = mounts.parse_locks(sysfs.read(f"{roots.proc}/locks"))
    key = (split_devno(device), inode)
    pids = sorted({lock.pid for lock in found if (lock.devno, lock.inode) == key and lock.pid > 0})
    return [Holder("lock", processes.command(pid, roots), "", pid) for pid in pids]


def _processes(nodes: dict[str, str], roots: Roots) -> Iterator[Holder]:
    """Yield the processes with one of these paths open; the values are the holders' notes."""
    wanted = {identity: path for path in nodes if (identity := processes.identity_at(path))}
    for pid, path in processes.openers(wanted, roots):
        name = processes.command(pid, roots)
        yield Holder("process", name, os.path.basename(path), pid, nodes[path])
