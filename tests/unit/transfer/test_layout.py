"""What is copied and what is written over are apart, or the copy is refused."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

import pytest

from dmcopy.block import BlockDevice
from dmcopy.block.storage import StorageExtent
from dmcopy.errors import UsageError
from dmcopy.io import IoRegion
from dmcopy.io.simulated import SimulatedDisk
from dmcopy.transfer import layout
from dmcopy.transfer.layout import check_apart, check_over

A, B = SimulatedDisk(64, "a"), SimulatedDisk(64, "b")


@pytest.mark.parametrize(
    ("source", "dests", "says"),
    [
        ((A, 0, 32), [(A, 32, 32)], ""),
        ((A, 0, 32), [(B, 0, 32), (B, 32, 32)], ""),
        (None, [(A, 0, 32)], ""),
        ((A, 0, 32), [(A, 31, 32)], "a sectors 31.32 overlaps the source, a sectors 0.32: it is"),
        ((A, 31, 32), [(A, 0, 32)], "overlaps the source, a sectors 31.32: it is the same storage"),
        ((A, 0, 8), [(B, 0, 8), (B, 7, 8)], "overlaps another destination, b sectors 0.8: it is"),
        (None, [(B, 0, 8), (B, 7, 8)], "b sectors 7.8 overlaps another destination, b sectors 0.8"),
    ],
)
def test_what_shares_sectors_is_refused(
    source: tuple[SimulatedDisk, int, int] | None,
    dests: list[tuple[SimulatedDisk, int, int]],
    says: str,
) -> None:
    regions = IoRegion(*source) if source else None, [IoRegion(*dest) for dest in dests]
    if not says:
        check_apart(*regions)
        return
    with pytest.raises(UsageError, match=says):
        check_apart(*regions)


def test_what_may_share_sectors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the one is somewhere on a disk that the other is a part of."""
    part = StorageExtent("disk", 0, 8)
    places = {
        id(A): StorageExtent("raid", 0, 8, below=(StorageExtent("disk", 0, 99),)),
        id(B): part,
    }
    monkeypatch.setattr(layout, "extents", lambda identity, *_: (places[identity],))
    with pytest.raises(UsageError, match="both are on the same storage, and where cannot be told"):
        check_apart(IoRegion(A, 0, 8), [IoRegion(B, 0, 8)])


def test_what_is_busy_because_it_is_another_of_the_same_copy(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(bytes(8 * 512))
    with BlockDevice.open(tmp_path / "a") as device:
        check_over(str(tmp_path / "b"), [device])
        with pytest.raises(UsageError, match=r"/a and .*/a are the same storage: give one of them"):
            check_over(str(tmp_path / "a"), [device])


def test_what_lies_beside_it_on_the_same_disk_is_not_what_makes_it_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of two partitions without a gap: the sentence would name one that has no part in it."""
    (tmp_path / "a").write_bytes(bytes(8 * 512))
    dest = SimulatedDisk(8)
    begins = {dest.identity: 0}

    def on_one_disk(identity: Hashable, start: int, length: int) -> tuple[StorageExtent, ...]:
        first = begins.get(identity, 8 * 512) + start
        return (StorageExtent("disk", first, first + length),)

    monkeypatch.setattr(layout, "extents", on_one_disk)
    for begin in (0, 16 * 512):
        begins[dest.identity] = begin
        check_over(str(tmp_path / "a"), [dest])
    for begin in (512, 15 * 512):
        begins[dest.identity] = begin
        with pytest.raises(UsageError, match="are the same storage"):
            check_over(str(tmp_path / "a"), [dest])
