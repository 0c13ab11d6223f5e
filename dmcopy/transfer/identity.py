"""Knowing a device again: after a reboot, under another node, or not being the same any more.

A name is no identity. A file that was removed and made again has the old path and may have the old
inode number; a loop device has the number that was free; two disks may have one serial number. So
there are two ways to be the same, and where neither can tell there is doubt, and its reason.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from dmcopy.block import backing, syscalls, sysfs
from dmcopy.block.backing import Backing
from dmcopy.block.devno import DevNo, block_devno
from dmcopy.block.processes import identity_of
from dmcopy.block.sysfs import LIVE, Roots
from dmcopy.io.region import Device
from dmcopy.ledger import boot_id

# Made from metadata on the disks, whatever program makes the device: LVM, LUKS, multipath, dmraid.
_LASTING_UUID: Final = re.compile(r"(part\d+-)?(LVM|CRYPT-LUKS\d|mpath|DMRAID)-")
# Their content is made anew under the same number, and the kernel counts that as the same disk.
_REFILLED: Final = ("nbd", "zram")


@dataclass(frozen=True)
class Identity:
    """What a device or file is known by.

    Attributes:
        always: the same for the same one at any time, and for no other; "" where nothing tells.
        boot: the same until the next boot, and for no other; "" where nothing tells.
        doubt: what there is to say where `always` is "".
    """

    always: str = ""
    boot: str = ""
    doubt: str = ""

    def is_of(self, other: Identity) -> bool:
        """Whether the two are surely the same."""
        return bool(self.always and self.always == other.always) or bool(
            self.boot and self.boot == other.boot
        )

    def doubt_about(self, other: Identity) -> str:
        """Return why it cannot be told whether the two are the same, "" where they are not."""
        return self.doubt or other.doubt


def identify(device: Device, roots: Roots = LIVE) -> Identity:
    """Return what an open device or file is known by; a library's own device, its path."""
    try:
        fd = device.fileno()
        status = os.fstat(fd)
    except OSError:  # in memory, or a mapped device of the userspace engine
        return Identity(always=os.path.realpath(device.path))
    return _of(device.path, fd, status, roots)


def _of(path: str, fd: int, status: os.stat_result, roots: Roots) -> Identity:
    if number := block_devno(status):
        return of_block(number, roots)
    born = syscalls.birth_time(fd)
    if born is None:
        return Identity(doubt="its file system does not say when a file was made")
    # The number of a file system's device may change at a boot, and of a container's at its start.
    known = f"inode {status.st_ino} made {born}"
    return Identity(f"{os.path.realpath(path)} {known}", _in_this_boot(f"{status.st_dev} {known}"))


def of_block(number: DevNo, roots: Roots = LIVE) -> Identity:
    """Return what the block device of this number is known by."""
    name = sysfs.name_of(number, roots)
    disk = sysfs.parent(name, roots) or name
    folder = sysfs.directory(disk, roots)
    where = f" from {sysfs.read(f'{sysfs.directory(name, roots)}/start')}" if disk != name else ""
    made = backing.of(disk, roots)
    always, doubt = _of_disk(folder) if made is None else _of_loop(made, roots)
    # Counts each disk that appears and each medium and loop device that is set up (block/genhd.c).
    sequence = "" if disk.startswith(_REFILLED) else sysfs.read(f"{folder}/diskseq")
    return Identity(
        always and f"{always}{where}",
        _in_this_boot(f"{sequence}{where}" if sequence else ""),
        doubt,
    )


def _in_this_boot(known: str) -> str:
    boot = boot_id()
    return f"{boot} {known}" if boot and known else ""


def _of_disk(folder: str) -> tuple[str, str]:
    uuid = sysfs.read(f"{folder}/dm/uuid")
    if os.path.isdir(f"{folder}/dm") and not _LASTING_UUID.match(uuid):
        return "", "a mapped device of this name and UUID may be made of anything"
    for known in (uuid, sysfs.read(f"{folder}/md/uuid"), sysfs.read(f"{folder}/device/cid")):
        if known:
            return known, ""
    if sysfs.read(f"{folder}/removable") == "1":
        return "", "its medium can be changed"
    wwn = sysfs.read(f"{folder}/wwid") or sysfs.read(f"{folder}/device/wwid")
    serial = sysfs.read(f"{folder}/serial") or sysfs.read(f"{folder}/device/serial")
    if wwn:
        return f"wwn {wwn} serial {serial}", ""
    if serial:
        return "", f"all it is known by is its serial number, {serial}, which others may have"
    return "", "it has no number that it is known by"


def _of_loop(made: Backing, roots: Roots) -> tuple[str, str]:
    """Return what a loop device is known by: its file and where in that it begins, in bytes."""
    file = Identity(doubt=f"the file behind it, {made.path}, is not to be seen")
    with suppress(OSError, ValueError):
        fd = os.open(made.path, os.O_PATH | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if identity_of(status) == made.identity:  # the name may be another file's by now
                file = _of(made.path, fd, status, roots)
        finally:
            os.close(fd)
    return file.always and f"loop at {made.offset} of {file.always}", file.doubt
