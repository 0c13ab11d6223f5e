"""Regions: what they share, and which of them a device has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.errors import UsageError
from dmcopy.io import IoRegion
from dmcopy.io.simulated import SimulatedDisk

DISK, OTHER = SimulatedDisk(64, "disk"), SimulatedDisk(64, "other")
PLACES = st.tuples(st.integers(0, 12), st.integers(1, 6))


@given(PLACES, PLACES)
def test_what_overlaps_shares_a_sector(one: tuple[int, int], other: tuple[int, int]) -> None:
    shared = {*range(one[0], sum(one))} & {*range(other[0], sum(other))}
    assert IoRegion(DISK, *one).overlaps(IoRegion(DISK, *other)) is bool(shared)
    assert not IoRegion(DISK, *one).overlaps(IoRegion(OTHER, *other))


def test_a_slice_is_a_part() -> None:
    region = IoRegion(DISK, 8, 16)
    assert region.end == 24
    assert region.slice(4, 6) == IoRegion(DISK, 12, 6)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ((0, 64), ""),
        ((64, 0), ""),
        ((56, 8), ""),
        ((-8, 8), "disk sectors -8.8 begins or ends before the device does"),
        ((8, -8), "disk sectors 8.-8 begins or ends before the device does"),
        ((-8, 80), "begins or ends before"),
        ((56, 16), "ends at sector 72, past the end of the device at sector 64"),
        ((0, 72), "past the end"),
        ((4, 8), "is not on whole blocks of disk, which has blocks of 4096 bytes"),
        ((8, 4), "is not on whole blocks"),
        ((7, 1), "is not on whole blocks"),
    ],
)
def test_a_region_must_lie_on_whole_blocks_of_its_device(place: tuple[int, int], says: str) -> None:
    region = IoRegion(SimulatedDisk(64, "disk", logical_block_size=4096), *place)
    if not says:
        region.check()
        region.check(write=True)
        return
    with pytest.raises(UsageError, match=says):
        region.check()


def test_what_is_read_only_is_not_written() -> None:
    disk = SimulatedDisk(64, "disk")
    disk.read_only = True
    IoRegion(disk, 0, 8).check()
    with pytest.raises(UsageError, match="disk is read-only"):
        IoRegion(disk, 0, 8).check(write=True)
