"""What snapshot-merge does, offline: the store's chunks go back to the origin, the last ones first.

    extents, from the last entry back → copies → flush the origin → zero those entries → flush

At any moment the entries on disk are those that may not have reached the origin yet, so whatever
stops it, the next run goes on. (drivers/md/dm-snap.c, snapshot_merge_next_chunks and
merge_callback; the flush of the origin since 5.11.) The kernel goes extent by extent; here
`BATCH_BYTES` are copied before a flush. A power cut may keep any of a batch's zeroed entries and
lose others: all of them have been copied, and what is behind the first zeroed one does not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from dmcopy.cow.extents import Extent, backwards
from dmcopy.cow.extract import check_chunks, exception_move, mean_extents
from dmcopy.cow.load import load
from dmcopy.cow.moving import Move, Mover, Write
from dmcopy.cow.store import PIECE_BYTES, CowDevice, Store, read_bytes, read_store
from dmcopy.io.region import IoRegion
from dmcopy.ondisk.exception_store import ENTRY_BYTES, parse_area
from dmcopy.units import SECTOR_SHIFT

BATCH_BYTES: Final = 256 << 20


@dataclass
class Batch:
    """What is copied between two flushes, and the writes that zero its entries."""

    extents: list[Extent] = field(default_factory=list)
    clearings: list[Write] = field(default_factory=list)
    chunks: int = 0


@dataclass
class Merge:
    """A merge that is to be done; see `plan_merge`.

    `exceptions` is how many there are, `extents` about how many copies that takes; `merged` counts
    the exceptions that are safe on the origin and gone from the store.
    """

    origin: IoRegion
    store: Store
    exceptions: int
    extents: int
    merged: int = 0

    @property
    def total(self) -> int:
        """How many sectors are to be copied, give or take a short last chunk."""
        return self.exceptions * self.store.header.chunk_size

    @property
    def mean(self) -> int:
        """About how long the copies are, in sectors."""
        return self.total // (self.extents or 1)

    def run(self, mover: Mover) -> None:
        """Merge. Raises DeviceError; what was merged until then remains so."""
        for batch in self._batches():
            mover.run(self._moves(batch))
            if mover.interrupted:
                return
            mover.flush(self.origin.device)
            mover.write(self.store.device, batch.clearings)
            mover.flush(self.store.device)
            self.merged += batch.chunks

    def _moves(self, batch: Batch) -> Iterator[Move]:
        for extent in sorted(batch.extents):
            yield from exception_move(self.store, extent, self.origin).cut()

    def _batches(self) -> Iterator[Batch]:
        """Yield batches from the last exception back. What one clears, the next may rely on."""
        limit = max(1, BATCH_BYTES // self.store.layout.chunk_bytes)
        batch = Batch()
        for piece in self._pieces():
            keep = end = len(piece.data) // ENTRY_BYTES
            for extent in backwards(parse_area(piece.data), limit):
                batch.extents.append(extent)
                batch.chunks += extent.count
                keep -= extent.count
                if batch.chunks >= limit:
                    batch.clearings.append(self._clearing(piece, keep, end))
                    yield batch
                    batch, end = Batch(), keep
            if keep < end:
                batch.clearings.append(self._clearing(piece, keep, end))
        if batch.chunks:
            yield batch

    def _pieces(self) -> Iterator[_Piece]:
        """Yield the entries by pieces of an area, the last one first, none empty."""
        layout = self.store.layout
        step = min(PIECE_BYTES // ENTRY_BYTES, layout.per_area)
        left = self.exceptions
        while left:
            area, place = divmod(left - 1, layout.per_area)
            first = place // step * step
            offset = self.store.area_offset(area) + first * ENTRY_BYTES
            count = place - first + 1
            yield _Piece(offset, read_bytes(self.store.device, offset, count * ENTRY_BYTES))
            left -= count

    def _clearing(self, piece: _Piece, keep: int, end: int) -> Write:
        """Return what zeroes the entries from `keep` up to `end` of a piece, in whole blocks."""
        block = self.store.device.logical_block_size
        low = keep * ENTRY_BYTES // block * block
        high = -(-end * ENTRY_BYTES // block) * block
        kept = piece.data[low : keep * ENTRY_BYTES]
        return Write((piece.offset + low) >> SECTOR_SHIFT, kept.ljust(high - low, b"\0"))


class _Piece(NamedTuple):
    """Entries as they are on disk, from byte `offset` of the COW on."""

    offset: int
    data: bytes


def plan_merge(origin: IoRegion, cow: CowDevice) -> Merge:
    """Read the store on `cow` and see whether it can be merged into `origin`, the whole device.

    Raises MetadataError for a store that is invalidated or contradicts itself, UsageError for
    devices that do not go together.
    """
    store = read_store(cow)
    check_chunks(store, origin.device)
    table = load(store, origin_sectors=origin.count)
    return Merge(origin, store, len(table), mean_extents(table))
