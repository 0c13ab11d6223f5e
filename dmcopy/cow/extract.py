"""The content of a snapshot as an image: what is in the store from the COW, the rest as it is."""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from dmcopy.cow.extents import Consecutive, join
from dmcopy.cow.load import Exceptions, load, load_any
from dmcopy.cow.moving import Mover
from dmcopy.cow.store import CowDevice, Entries, Store, read_store
from dmcopy.errors import DeviceError, UsageError
from dmcopy.io.region import Device, IoRegion
from dmcopy.kcopyd.moves import Move
from dmcopy.units import SECTOR_SHIFT


class Extract(NamedTuple):
    """What is to be copied to `out` from `origin` and from the store; see `plan_extract`.

    `entries`: what is in the store, as it is there, when nothing else is to be copied.
    """

    origin: IoRegion
    store: Store
    exceptions: Exceptions
    out: IoRegion
    entries: Sequence[Entries] | None = None

    @property
    def total(self) -> int:
        """How many sectors will be written."""
        if self.entries is None:
            return self.origin.count
        size = self.store.header.chunk_size
        last, rest = divmod(self.origin.count, size)
        has_last = self.exceptions.olds[-1:] == array("Q", [last])
        return len(self.exceptions) * size - (size - rest if rest and has_last else 0)

    def _all(self) -> Iterator[Move]:
        """Yield the copies of everything, ascending: so its writes can be long."""
        at = 0
        for extent in join(self.exceptions):
            start = extent.old * self.store.header.chunk_size
            yield self._unchanged(at, start)
            yield exception_move(self.store, extent, self.out)
            at = start + extent.count * self.store.header.chunk_size
        if at < self.origin.count:
            yield self._unchanged(at, self.origin.count)

    def _changed(self, entries: Iterable[Entries]) -> Iterator[Move]:
        """Yield the copies of what is in the store, as it is there: so its reads can be long."""
        for some in entries:
            for extent in join(zip(some.olds, some.news, strict=True)):
                yield exception_move(self.store, extent, self.out)

    def run(self, mover: Mover) -> None:
        """Copy, cut a longer file to the image's length, and flush. Raises DeviceError.

        What `entries` are written to is not cut: it has the rest already.
        """
        mover.run(self._all() if self.entries is None else self._changed(self.entries))
        if not mover.interrupted:
            if self.entries is None:
                self._cut()
            mover.flush(self.out.device)

    def _cut(self) -> None:
        device, size = self.out.device, self.out.end << SECTOR_SHIFT
        try:
            fd = device.fileno()
        except OSError:  # in memory, or a mapped device of the userspace engine
            return
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                os.ftruncate(fd, size)
        except OSError as error:
            raise DeviceError(device.path, "cut it", error.errno or 0) from error

    def _unchanged(self, start: int, end: int) -> Move:
        device, sector, _ = self.origin
        return Move(device, sector + start, self.out.sector + start, end - start)


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
    if not changed_only:
        return Extract(origin, store, load(store, origin_sectors=origin.count), out)
    kept: list[Entries] = []
    exceptions = load_any(store, origin_sectors=origin.count, kept=kept)
    return Extract(origin, store, exceptions, out, kept)


def exception_move(store: Store, extent: Consecutive, dest: IoRegion) -> Move:
    """Return the copy of an extent to its place on `dest`: the last chunk may be a short one."""
    size = store.header.chunk_size
    start = extent.old * size
    count = min(extent.count * size, dest.count - start)
    return Move(store.device, extent.new * size, dest.sector + start, count)


def check_chunks(store: Store, *devices: Device) -> None:
    """Raise UsageError unless the store's chunks are whole blocks of all devices."""
    for device in (store.device, *devices):
        if store.layout.chunk_bytes % device.logical_block_size:
            raise UsageError(
                f"{device.path} has blocks of {device.logical_block_size} bytes, and the chunks on "
                f"{store.path} are {store.header.chunk_size << SECTOR_SHIFT} bytes: the kernel "
                f"would not put them together, either"
            )
