"""The content of a snapshot as an image: what is in the store from the COW, the rest as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from dmcopy.cow.extents import Extent, join
from dmcopy.cow.load import load, load_any
from dmcopy.cow.moving import Move, Mover
from dmcopy.cow.store import CowDevice, Store, read_store
from dmcopy.errors import UsageError
from dmcopy.io.region import Device, IoRegion
from dmcopy.ondisk.exceptions import ExceptionTable
from dmcopy.units import SECTOR_SHIFT

_SAMPLE = 1000


@dataclass(frozen=True)
class Extract:
    """What is to be copied to `out` from `origin` and from the store; see `plan_extract`."""

    origin: IoRegion
    store: Store
    table: ExceptionTable
    out: IoRegion
    changed_only: bool

    @property
    def total(self) -> int:
        """How many sectors will be written."""
        if not self.changed_only:
            return self.origin.count
        size = self.store.header.chunk_size
        last, rest = divmod(self.origin.count, size)
        missing = size - rest if rest and last in self.table else 0
        return len(self.table) * size - missing

    @property
    def mean(self) -> int:
        """About how long the moves are, in sectors, judged by the beginning of the store."""
        extents = mean_extents(self.table)
        unchanged = -(-self.origin.count // self.store.header.chunk_size) - len(self.table)
        gaps = 0 if self.changed_only else min(extents, unchanged)
        return self.total // (extents + gaps or 1)

    def moves(self) -> Iterator[Move]:
        """Yield what is to be copied, ascending."""
        at = 0
        for extent in join(self.table.sorted_items()):
            move = exception_move(self.store, extent, self.out)
            if not self.changed_only and at < extent.old * self.store.header.chunk_size:
                yield from self._unchanged(at, move.dest.sector - self.out.sector)
            yield from move.cut()
            at = move.dest.end - self.out.sector
        if not self.changed_only:
            yield from self._unchanged(at, self.origin.count)

    def run(self, mover: Mover) -> None:
        """Copy, and flush. Raises DeviceError."""
        mover.run(self.moves())
        if not mover.interrupted:
            mover.flush(self.out.device)

    def _unchanged(self, start: int, end: int) -> Iterator[Move]:
        return Move(self.origin.slice(start, end - start), self.out.slice(start, end - start)).cut()


def plan_extract(
    origin: IoRegion, cow: CowDevice, out: IoRegion, *, changed_only: bool = False
) -> Extract:
    """Read the store on `cow` and see whether it can be extracted.

    `out` is as long as `origin`, the whole device. With `changed_only` nothing but the chunks in
    the store is written; that may also be done with an invalidated one. Raises MetadataError for a
    store that contradicts itself, UsageError for devices that do not go together.
    """
    store = read_store(cow)
    check_chunks(store, origin.device, out.device)
    read = load_any if changed_only else load
    return Extract(origin, store, read(store, origin_sectors=origin.count), out, changed_only)


def mean_extents(table: ExceptionTable) -> int:
    """Return about how many extents a table has, from a sample in no particular order."""
    sample = [extent.count for extent in islice(join(table.items()), _SAMPLE)]
    return len(table) * len(sample) // sum(sample) if sample else 0


def exception_move(store: Store, extent: Extent, dest: IoRegion) -> Move:
    """Return the copy of an extent to its place on `dest`: the last chunk may be a short one."""
    size = store.header.chunk_size
    start = extent.old * size
    count = min(extent.count * size, dest.count - start)
    return Move(IoRegion(store.device, extent.new * size, count), dest.slice(start, count))


def check_chunks(store: Store, *devices: Device) -> None:
    """Raise UsageError unless the store's chunks are whole blocks of all devices."""
    for device in (store.device, *devices):
        if store.layout.chunk_bytes % device.logical_block_size:
            raise UsageError(
                f"{device.path} has blocks of {device.logical_block_size} bytes, and the chunks on "
                f"{store.path} are {store.header.chunk_size << SECTOR_SHIFT} bytes: the kernel "
                f"would not put them together, either"
            )
