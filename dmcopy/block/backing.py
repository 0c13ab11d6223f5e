"""What each loop device is made of, as its driver knows it.

The path that sysfs shows is that of the moment when the device was made, in the mount namespace
of the program that made it: the file may have other names, the name may be another file's by now,
and a path may be one of another namespace. So the driver is asked for device and inode; the path
counts only where it may not be asked, as it takes the right to open the loop device.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from dmcopy.block import syscalls, sysfs
from dmcopy.block.processes import Identity, identity_at
from dmcopy.block.sysfs import LIVE, Roots
from dmcopy.errors import raise_passing


class Backing(NamedTuple):
    """What is behind the loop device `loop`, a kernel name.

    `path` is as sysfs shows it; `identity` is of the file or device, None where that is not known.
    The loop device has the bytes from `offset` on, `limit` of them, or up to the end if that is 0.
    """

    loop: str
    path: str
    identity: Identity | None
    offset: int
    limit: int

    def overlaps(self, start: int, length: int) -> bool:
        """Return whether the loop device has any of these bytes of what is behind it."""
        return self.offset < start + length and (not self.limit or start < self.offset + self.limit)


def of(loop: str, roots: Roots = LIVE) -> Backing | None:
    """Return what a loop device is made of; None for a free one, and for what is none."""
    path = sysfs.backing_file(loop, roots)
    if not path:
        return None
    try:
        fd = os.open(sysfs.node(loop, roots), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise_passing(error)  # else a file of another name would not be found
        return _as_shown(loop, path, roots)
    try:
        status = syscalls.loop_status(fd)
    except OSError:  # detached meanwhile
        return _as_shown(loop, path, roots)
    finally:
        os.close(fd)
    found: Identity = ("file", status.device, status.inode)
    if status.rdevice:
        found = ("block", status.rdevice)
    return Backing(loop, path, found, status.offset, status.size_limit)


def mark(loop: str, roots: Roots = LIVE) -> str:
    """Return what tells this attached loop device from any other of this boot; "" for a free one.

    That is the kernel's count of disks; before Linux 5.15, the inode of what is behind it.
    It is attached for as long as the driver's attributes are there: what they say may be empty
    before that, or too long to be told (loop_sysfs_init in drivers/block/loop.c).
    """
    try:
        os.stat(f"{sysfs.directory(loop, roots)}/loop")
    except OSError as error:
        raise_passing(error)
        return ""
    if known := sysfs.disk_mark(sysfs.devno(loop, roots), roots):
        return known
    found = of(loop, roots)
    return str(found.identity) if found else ""


def is_made_of(loop: str, file: str, roots: Roots = LIVE) -> bool:
    """Return whether a loop device is made of what is at `file`, or was, if nothing is there now.

    The kernel appends " (deleted)" when the file has been unlinked since (d_path in fs/d_path.c).
    """
    found = of(loop, roots)
    if found is None:
        return False
    there = identity_at(file)
    return found.identity == there if there else found.path in (file, f"{file} (deleted)")


def of_all(roots: Roots = LIVE) -> list[Backing]:
    """Return what each loop device is made of that is made of anything."""
    names = [name for name in sysfs.names(roots) if name.startswith("loop")]
    return [found for name in names if (found := of(name, roots))]


def loops_over(identity: Identity | None, roots: Roots = LIVE) -> list[Backing]:
    """Return the loop devices that are made of a file or device, under whatever name."""
    return [found for found in of_all(roots) if found.identity == identity] if identity else []


def _as_shown(loop: str, path: str, roots: Roots) -> Backing:
    folder = f"{sysfs.directory(loop, roots)}/loop"
    offset, limit = (sysfs.read_int(f"{folder}/{name}") for name in ("offset", "sizelimit"))
    return Backing(loop, path, identity_at(path), offset, limit)
