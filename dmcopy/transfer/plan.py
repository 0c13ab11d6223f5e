"""What is to be copied: from where to where, in which pieces.

Inside a transfer every position is an offset, in sectors, from the beginning of the copied range:
the same number on the source and on each destination.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from dmcopy.errors import UsageError
from dmcopy.io.region import Device, IoRegion
from dmcopy.kcopyd import MAX_REGIONS
from dmcopy.ranges import RangeSet
from dmcopy.units import SECTOR_SHIFT

HOLE_SECTORS: Final = 32768
"""Zeroing takes no pages, so its pieces are longer: 16 MiB, one slice of kcopyd's."""


class Piece(NamedTuple):
    """A run of sectors that is copied in one go to the destinations `targets` (their indices).

    `zero`: nothing is read for it, because it is known to be zeroes.
    """

    start: int
    length: int
    targets: tuple[int, ...]
    zero: bool = False

    @property
    def end(self) -> int:
        """The offset behind the last sector."""
        return self.start + self.length

    def halves(self, block: int) -> tuple[Piece, Piece]:
        """Return the two halves, each a whole number of blocks of `block` sectors."""
        half = max(block, self.length // 2 // block * block)
        return (
            self._replace(length=half),
            self._replace(start=self.start + half, length=self.length - half),
        )


class TransferPlan:
    """A checked copy of `source` (None: zeroes) to `dests`, in pieces of at most `piece` sectors.

    `holes`: offsets where the source is known to be zeroes; `empty`: those where each destination
    is, so that nothing needs to be done for what is in both. Raises UsageError for what cannot be:
    no destination or more than eight, ranges past an end, off the blocks, over each other.
    """

    def __init__(
        self,
        source: IoRegion | None,
        dests: tuple[IoRegion, ...],
        piece: int,
        sparse: bool = False,
        holes: RangeSet | None = None,
        empty: tuple[RangeSet, ...] = (),
    ) -> None:
        self.source = source
        self.dests = dests
        self.piece = piece
        self.sparse = sparse
        self.holes = RangeSet() if holes is None else holes
        self.empty = empty
        check_regions(self.source, self.dests)
        if self.piece < self.block or self.piece % self.block:
            raise UsageError(
                f"a piece of {self.piece} sectors is not a whole number of blocks: the devices "
                f"have blocks of {self.block << SECTOR_SHIFT} bytes"
            )

    def with_piece(self, piece: int) -> TransferPlan:
        """Return the same copy in pieces of another length, in sectors."""
        return TransferPlan(self.source, self.dests, piece, self.sparse, self.holes, self.empty)

    @property
    def count(self) -> int:
        """The length of the longest range in sectors."""
        return max(dest.count for dest in self.dests)

    @property
    def block(self) -> int:
        """The smallest unit, in sectors, that every device here can read and write."""
        return block_of(self.regions)

    @property
    def regions(self) -> tuple[IoRegion, ...]:
        """All regions, the source's first."""
        return (self.source, *self.dests) if self.source else self.dests

    @property
    def zero(self) -> RangeSet:
        """Offsets at which zeroes are to be written."""
        return self.holes if self.source else RangeSet([(0, self.count)])

    def zeroed(self) -> Iterator[RangeSet]:
        """Yield for each destination the offsets where it has already the zeroes it is to have."""
        for index in range(len(self.dests)):
            yield self.zero & self.empty[index] if self.empty else RangeSet()

    def pieces(self, needs: Sequence[RangeSet]) -> Iterator[Piece]:
        """Yield in ascending order the pieces that give each destination what it needs."""
        zero = self.zero
        edges = sorted({edge for ranges in (*needs, zero) for pair in ranges for edge in pair})
        for start, end in pairwise(edges):
            targets = tuple(index for index, need in enumerate(needs) if start in need)
            if targets:
                is_zero = start in zero
                size = HOLE_SECTORS if is_zero else self.piece
                yield from _cut(start, end, size, targets, is_zero)


def _cut(start: int, end: int, size: int, targets: tuple[int, ...], zero: bool) -> Iterator[Piece]:
    """Cut at multiples of `size`, so that a resumed copy has the same pieces as the first."""
    while start < end:
        stop = min(end, (start // size + 1) * size)
        yield Piece(start, stop - start, targets, zero)
        start = stop


def check_regions(source: IoRegion | None, dests: Sequence[IoRegion]) -> None:
    """Raise UsageError unless the regions can be a copy's."""
    check_number(len(dests))
    if source is not None:
        source.check()
        if not source.count:
            raise UsageError(f"there is nothing to copy: {source} is empty")
    for index, dest in enumerate(dests):
        dest.check(write=True)
        if source is not None and dest.overlaps(source):
            raise UsageError(f"{dest} overlaps the source, {source}")
        for other in dests[:index]:
            if dest.device.identity == other.device.identity:
                raise UsageError(f"{dest.device.path} is given twice as a destination")


def check_number(dests: int) -> None:
    """Raise UsageError unless there are 1 to 8 destinations."""
    if not 1 <= dests <= MAX_REGIONS:
        raise UsageError(f"a copy has 1 to {MAX_REGIONS} destinations, not {dests}")


def block_of(regions: Iterable[IoRegion]) -> int:
    """Return the largest logical block of the regions' devices, in sectors (powers of two all)."""
    return max(region.device.logical_block_size for region in regions) >> SECTOR_SHIFT


def find_holes(source: IoRegion, block: int) -> RangeSet:
    """Return the offsets where a sparse file has holes: whole blocks of `block` sectors only.

    Nothing for a device, and for a file system that cannot tell.
    """
    holes = RangeSet([(0, source.count)])
    try:
        for start, end in _data(source.device, source.sector << SECTOR_SHIFT, source.end):
            low = (start >> SECTOR_SHIFT) - source.sector
            high = -(-end >> SECTOR_SHIFT) - source.sector
            holes.remove(max(0, low // block * block), -(-high // block) * block)
    except OSError:
        return RangeSet()
    return holes


def _data(device: Device, position: int, end_sector: int) -> Iterator[tuple[int, int]]:
    """Yield the byte ranges of a file that hold data, from `position` on."""
    fd, end = device.fileno(), end_sector << SECTOR_SHIFT
    while position < end:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        position = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, position
