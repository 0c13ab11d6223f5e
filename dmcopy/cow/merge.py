"""What snapshot-merge does, offline: the store's chunks go back to the origin, the last ones first.

    extents, from the last entry back → copies → flush the origin → zero those entries → flush
                                                 (the next copies are under way by then)

At any moment the entries on disk are those that may not have reached the origin yet, so whatever
stops it, the next run resumes there. (drivers/md/dm-snap.c, snapshot_merge_next_chunks and
merge_callback; the flush of the origin since 5.11.) The kernel goes extent by extent; here
`BATCH_BYTES` are copied before a flush. A power cut may keep any of a batch's zeroed entries and
lose others: all of them have been copied, and what is behind the first zeroed one does not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final, NamedTuple

from dmcopy.cow.extents import Consecutive, join
from dmcopy.cow.extract import check_chunks, exception_move
from dmcopy.cow.load import load
from dmcopy.cow.moving import Mover, Write
from dmcopy.cow.store import CowDevice, Entries, Store, read_store
from dmcopy.io.region import IoRegion
from dmcopy.kcopyd.moves import Move
from dmcopy.ondisk.exception_store import ENTRY_BYTES, build_words
from dmcopy.units import SECTOR_SHIFT

BATCH_BYTES: Final = 128 << 20


class _Step(NamedTuple):
    """The last `count` of some entries, of which `keep` are left when those are merged."""

    entries: Entries
    keep: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which is not used

    def extents(self) -> Iterator[Consecutive]:
        """Yield what is to be copied."""
        pairs = self.entries.pairs[2 * self.keep : 2 * (self.keep + self.count)]
        return join(zip(pairs[0::2], pairs[1::2], strict=True))


class Merge:
    """A merge that is to be done; see `plan_merge`.

    `entries` is what is in the store, kept from when it was checked, since areas would be read
    behind all the copies under way; `exceptions` how many there are, `merged` how many of them are
    safe on the origin and gone from the store.
    """

    def __init__(
        self, origin: IoRegion, store: Store, entries: Sequence[Entries], exceptions: int
    ) -> None:
        self.origin = origin
        self.store = store
        self.entries = entries
        self.exceptions = exceptions
        self.merged = 0

    @property
    def _limit(self) -> int:
        """How many chunks are a batch."""
        return max(1, BATCH_BYTES // self.store.layout.chunk_bytes)

    @property
    def total(self) -> int:
        """How many sectors are to be copied, give or take a short last chunk."""
        return self.exceptions * self.store.header.chunk_size

    def run(self, mover: Mover) -> None:
        """Merge. Raises DeviceError; what was merged until then remains so."""
        walk, copied = self._walk(), list[_Step]()
        while True:
            batch: list[_Step] = []
            mover.start(self._moves(walk, batch))
            if copied:
                self._settle(mover, copied)  # meanwhile the next ones are copied
            mover.finish()
            if mover.interrupted or not batch:
                return
            copied = batch

    def _settle(self, mover: Mover, copied: list[_Step]) -> None:
        """Make a batch that has been copied durable, and only then forget its entries."""
        mover.flush(self.origin.device)
        mover.write(self.store.device, list(self._clearings(copied)))
        mover.flush(self.store.device)
        self.merged += sum(step.count for step in copied)

    def _moves(self, walk: Iterator[_Step], batch: list[_Step]) -> Iterator[Move]:
        """Yield the next copies, and note what they are of."""
        chunks = 0
        for step in walk:
            batch.append(step)
            for extent in step.extents():
                yield exception_move(self.store, extent, self.origin)
            chunks += step.count
            if chunks >= self._limit:
                return

    def _walk(self) -> Iterator[_Step]:
        """Yield all exceptions, the last ones first, a batch at a time."""
        for entries in reversed(self.entries):
            left = len(entries.pairs) // 2
            while left:
                count = min(left, self._limit)
                left -= count
                yield _Step(entries, left, count)

    def _clearings(self, batch: list[_Step]) -> Iterator[Write]:
        """Yield the writes, in whole blocks, that zero the entries of a batch: one for each run."""
        block = self.store.device.logical_block_size
        for entries, steps in groupby(batch, attrgetter("entries")):
            here = list(steps)
            first, last = here[0], here[-1]
            low = last.keep * ENTRY_BYTES // block * block
            end = (first.keep + first.count) * ENTRY_BYTES
            kept = build_words(entries.pairs[2 * (low // ENTRY_BYTES) : 2 * last.keep])
            zeroed = kept.ljust(-(-end // block) * block - low, b"\0")
            yield Write((entries.offset + low) >> SECTOR_SHIFT, zeroed)


def plan_merge(origin: IoRegion, cow: CowDevice) -> Merge:
    """Read the store on `cow` and see whether it can be merged into `origin`, the whole device.

    Raises MetadataError for a store that is invalidated or contradicts itself, UsageError for
    devices that do not go together.
    """
    store = read_store(cow)
    check_chunks(store, origin.device)
    kept: list[Entries] = []
    exceptions = load(store, origin_sectors=origin.count, kept=kept)
    return Merge(origin, store, kept, len(exceptions))
