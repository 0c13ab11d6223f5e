"""Whether source and destinations of a copy have no byte in common, whatever paths lead there.

Copying /dev/sda to /dev/sda1, or a file to the loop device that is made of it, would write over
what is still to be read; of two destinations over each other, the one would not have what was
copied to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from dmcopy.block import BlockDevice
from dmcopy.block.storage import StorageExtent, extents
from dmcopy.errors import UsageError
from dmcopy.io.region import Device, IoRegion
from dmcopy.units import SECTOR_SHIFT


def check_apart(source: IoRegion | None, dests: Sequence[IoRegion]) -> None:
    """Raise UsageError when two of them share sectors, or may for all that can be told."""
    regions = [*dests] if source is None else [source, *dests]
    if len(regions) < 2:
        return
    found = [(region, _extents(region)) for region in regions]
    for (one, places), (other, there) in combinations(found, 2):
        what = "the source" if one is source else "another destination"
        if why := _shared(places, there):
            raise UsageError(f"{other} overlaps {what}, {one}: {why}")


def check_over(path: str, dests: Sequence[Device]) -> None:
    """Raise UsageError when one of the devices lies over what is at `path`, or under it.

    That is why it is busy: the claim of the one keeps the other from being claimed.
    """
    with BlockDevice.open(path) as device:
        place = extents(device.identity, 0, device.size_bytes)
    for dest in dests:
        if _shared(place, extents(dest.identity, 0, dest.sectors << SECTOR_SHIFT)):
            raise UsageError(f"{path} and {dest.path} are the same storage: give one of them")


def _extents(region: IoRegion) -> tuple[StorageExtent, ...]:
    start, length = region.sector << SECTOR_SHIFT, region.count << SECTOR_SHIFT
    return extents(region.device.identity, start, length)


def _shared(some: Sequence[StorageExtent], others: Sequence[StorageExtent]) -> str:
    touching = [(one, other) for one in some for other in others if one.touches(other)]
    if any(one.identity == other.identity for one, other in touching):
        return "it is the same storage"
    return "both are on the same storage, and where cannot be told" if touching else ""
