"""Where a device's sectors really are: a partition's on its disk, a loop device's in its file.

Two paths can lead to the same sectors without being the same device. Copying /dev/sda to /dev/sda1,
or a file to the loop device that is made of it, would write over what is still to be read.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import Final

from dmcopy.block import sysfs
from dmcopy.block.processes import identity_at
from dmcopy.errors import UsageError
from dmcopy.io.region import IoRegion
from dmcopy.units import SECTOR_SHIFT

_DEEPEST: Final = 16  # a loop of loop devices cannot be made, but a wrong reading must end


def check_apart(source: IoRegion, dest: IoRegion) -> None:
    """Raise UsageError when the two share sectors, whatever paths lead there."""
    from_id, from_start = _bottom(source)
    to_id, to_start = _bottom(dest)
    if from_id != to_id:
        return
    if from_start < to_start + dest.count and to_start < from_start + source.count:
        raise UsageError(f"{dest} overlaps the source, {source}: it is the same storage")


def _bottom(region: IoRegion) -> tuple[Hashable, int]:
    """Follow a region down to the disk or file that holds it; return that, and the first sector."""
    identity, start = region.device.identity, region.sector
    for _ in range(_DEEPEST):
        below = _below(identity)
        if below is None:
            break
        identity, start = below[0], start + below[1]
    return identity, start


def _below(identity: Hashable) -> tuple[Hashable, int] | None:
    if not (isinstance(identity, tuple) and len(identity) == 2 and identity[0] == "block"):
        return None
    name = sysfs.name_of((os.major(identity[1]), os.minor(identity[1])))
    folder = sysfs.directory(name)
    disk = sysfs.parent(name)
    if disk:
        number = sysfs.devno(disk)
        return (
            (("block", os.makedev(*number)), sysfs.read_int(folder / "start")) if number else None
        )
    backing = sysfs.backing_file(name)
    below = identity_at(backing) if backing else None
    if below is None:
        return None
    return below, sysfs.read_int(folder / "loop/offset") >> SECTOR_SHIFT
