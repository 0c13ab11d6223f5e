"""What a copy must be before anything of it is started: whole, in bounds, and not over itself."""

from __future__ import annotations

from collections.abc import Sequence

from dmcopy.errors import UsageError
from dmcopy.io.region import IoRegion
from dmcopy.kcopyd.copyjob import MAX_REGIONS


def check_copy(source: IoRegion, dests: Sequence[IoRegion]) -> None:
    """Raise UsageError unless `source` can be copied to `dests`.

    Every job comes here, and nearly all are one small good copy: those are let through quickly.
    """
    if len(dests) != 1:
        _check_fan(source, dests)
        return
    device, sector, count = source
    to, to_sector, to_count = dests[0]
    numbers = sector | to_sector | count  # negative if one of them is, and on blocks if all are
    if (
        count != to_count
        or numbers < 0
        or sector + count > device.sectors
        or to_sector + count > to.sectors
        or to.read_only
        or (numbers << 9) % device.logical_block_size
        or (numbers << 9) % to.logical_block_size
        or (device.identity == to.identity and source.overlaps(dests[0]))
    ):
        _check_fan(source, dests)


def _check_fan(source: IoRegion, dests: Sequence[IoRegion]) -> None:
    source.check()
    check_dests(dests)
    for dest in dests:
        if dest.count != source.count:
            raise UsageError(f"{dest} is not as long as {source}: every region has the same length")
        if dest.overlaps(source):
            raise UsageError(f"{dest} overlaps the source, {source}")


def check_dests(dests: Sequence[IoRegion]) -> None:
    """Raise UsageError unless `dests` are 1 to 8 equally long, disjoint, writable regions."""
    if not 1 <= len(dests) <= MAX_REGIONS:
        raise UsageError(f"a copy has 1 to {MAX_REGIONS} destinations, not {len(dests)}")
    for index, dest in enumerate(dests):
        dest.check(write=True)
        for other in dests[:index]:
            if dest.count != other.count:
                raise UsageError(
                    f"{dest} is not as long as {other}: every region has the same length"
                )
            if dest.overlaps(other):
                raise UsageError(f"{dest} overlaps another destination, {other}")


def check_sliceable(regions: Sequence[IoRegion], sectors: int) -> None:
    """Raise UsageError unless a slice of `sectors` holds at least one block of every device."""
    for region in regions:
        if region.device.logical_block_size > sectors << 9:
            raise UsageError(
                f"the client's pages hold {sectors} sectors, less than one block of "
                f"{region.device.path} ({region.device.logical_block_size} bytes): "
                f"give it more pages"
            )
