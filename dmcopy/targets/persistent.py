"""The persistent exception store: P and PO (drivers/md/dm-snap-persistent.c).

Exceptions become durable in batches: data first, then a flush, then the area that names it, with
FUA. A batch is written when no prepared exception is still being copied, or the area is full.
Before a full area is written the next one is zeroed, so that a reader finds an end.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from dmcopy.errors import DeviceError, DmcopyError
from dmcopy.io import whole
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device, IoRegion
from dmcopy.io.request import Io, Memory, Op
from dmcopy.ondisk.exception_store import (
    ENTRY,
    ENTRY_BYTES,
    HEADER_BYTES,
    VERSION,
    AreaLayout,
    StoreError,
    StoreHeader,
    parse_area,
    words,
)
from dmcopy.ondisk.exceptions import ExceptionTable
from dmcopy.targets.allocation import LAST_SECTOR, Allocation
from dmcopy.targets.base import TargetError
from dmcopy.targets.store import Committed, Prepared, Usage, check_chunk_size, ignore
from dmcopy.targets.work import Requests, wait_for
from dmcopy.units import PAGE_SIZE, SECTOR_SHIFT, SECTOR_SIZE

DEFAULT_CHUNK_SIZE = 32
"""DM_CHUNK_SIZE_DEFAULT_SECTORS."""
PREFETCH_CHUNKS = 12
"""DM_PREFETCH_CHUNKS; pieces of PIECE_BYTES where chunks are larger."""
PIECE_BYTES = 1 << 20


class MergeRun(NamedTuple):
    """`count` exceptions of consecutive chunks, from `old` and, on the COW, from `new` on."""

    old: int
    new: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which is not used


class PersistentStore:
    """A store on a COW device. `chunk_size` 0 is the default; what is on disk overrides it.

    `overflow`: PO, a snapshot that reports Overflow instead of becoming invalid. `allocation`:
    where the chunks go.
    """

    can_merge = True

    def __init__(
        self,
        reactor: Reactor,
        cow: Device,
        chunk_size: int,
        *,
        overflow: bool = False,
        allocation: Callable[[Device, AreaLayout], Allocation] = Allocation,
    ) -> None:
        self.letters = "PO" if overflow else "P"
        block = cow.logical_block_size // SECTOR_SIZE
        self.chunk_size = chunk_size or max(DEFAULT_CHUNK_SIZE, block)
        self.on_committed: Committed = ignore
        self._reactor = reactor
        self._cow = cow
        self._valid = True
        self._make_allocation = allocation
        self._area = 0
        self._committed = 0
        self._pending = 0  # prepared and not yet committed
        self._queue: list[Prepared] = []
        self._batch: list[Prepared] = []
        self._busy = 0
        self._writing = False
        self._set_layout()

    def _set_layout(self) -> None:
        self._layout = AreaLayout(self.chunk_size)
        self._allocation = self._make_allocation(self._cow, self._layout)
        # Requests on an area are whole pages, or whole chunks where these are smaller.
        self._unit = min(self._layout.chunk_bytes, max(PAGE_SIZE, self._cow.logical_block_size))
        self._memory = Memory(-(-self._layout.chunk_bytes // PAGE_SIZE))

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being written."""
        return not self._busy and not self._writing

    def attach(self, reactor: Reactor, cow: Device) -> None:
        """Continue as another table's, with its handle on the same COW device."""
        self._reactor = reactor
        self._cow = self._allocation.cow = cow

    def load(self, exceptions: ExceptionTable) -> bool:
        """Read the store, or make a new one where the first sector begins with zeroes.

        Returns False for a store that was invalidated. Raises TargetError for what is no store.
        """
        try:
            header = self._read_header()
            if header is None:
                self._make_new()
                return True
            if header.chunk_size != self.chunk_size:
                check_chunk_size(header.chunk_size, self._cow)
                self.chunk_size = header.chunk_size
                before = self._memory
                self._set_layout()
                before.close()
            self._valid = header.valid
            if header.valid:
                self._read_areas(exceptions)
        except StoreError as error:
            # read_header in dm-snap-persistent.c: only another magic (byte 0) is ENXIO.
            number = errno.EINVAL if error.offset else errno.ENXIO
            reason = f"Failed to read snapshot metadata: {error}"
            raise TargetError(reason, number) from error
        except DmcopyError as error:
            reason = f"Failed to read snapshot metadata: {error}"
            raise TargetError(reason, errno.EIO) from error
        return header.valid

    def prepare(self) -> int | None:
        chunk = self._allocation.take()
        if chunk is not None:
            self._pending += 1
        return chunk

    def commit(self, prepared: Prepared) -> None:
        """Record an exception; `on_committed` hears of its batch once that is durable."""
        self._queue.append(prepared)
        self._pending -= 1
        if not self._pending or len(self._queue) >= self._layout.per_area - self._committed:
            self._begin_batch()

    def invalidate(self, notify: Callable[[], object]) -> None:
        """Write the header with valid 0; a device that fails this keeps its old header."""
        self._valid = False
        self._busy += 1
        memory = Memory(1)
        memory.view[:HEADER_BYTES] = StoreHeader(False, VERSION, self.chunk_size).build()
        size = self._unit
        region = IoRegion(self._cow, 0, size >> SECTOR_SHIFT)

        def written(io: Io) -> None:
            del io
            self._busy -= 1
            memory.close()
            notify()

        self._reactor.submit(Io(Op.WRITE, region, memory, [(0, size)], written))

    def close(self) -> None:
        """Release the memory of the present area."""
        self._memory.close()

    def usage(self) -> Usage:
        """Return how much of the COW is used (persistent_usage)."""
        size = self.chunk_size
        allocated = self._allocation.allocated * size & LAST_SECTOR
        return Usage(allocated, self._cow.sectors, (self._area + 2) * size)

    async def last_runs(self, most: int) -> tuple[Sequence[MergeRun], int]:
        """Return what to merge next, the last one first, and an errno.

        As many runs from the end of an area as have `most` chunks together, but always one, and no
        chunk of the origin twice. None when nothing is left, and none and an errno when the
        metadata cannot be read. (persistent_prepare_merge takes one run.)
        """
        error = 0
        if not self._committed and self._area:
            error = await self._read_back()
        return self._last_runs(most), error

    async def commit_merge(self, count: int) -> bool:
        """Clear the last `count` exceptions, durably; return whether that worked."""
        first = self._committed - count
        start, size = first * ENTRY_BYTES, count * ENTRY_BYTES
        self._memory.view[start : start + size] = bytes(size)
        self._writing = True
        write = self._write_of_entries(first, self._committed)
        (error,) = await Requests(self._reactor, [write])
        self._writing = False
        if not error:
            self._committed = first
            self._allocation.merged(self._area, first)
        return not error

    def _read_header(self) -> StoreHeader | None:
        count = self._unit >> SECTOR_SHIFT
        return StoreHeader.parse(whole.read(self._reactor, self._cow, 0, count))

    def _make_new(self) -> None:
        """Zero the first area, then write a header (persistent_read_metadata, a new snapshot).

        The kernel writes them the other way round, and flushes neither: a power cut before the
        first commit can leave a header over an area of garbage. On a COW of one chunk it fails with
        the header written; so it does here. Raises DeviceError, UsageError.
        """
        area = IoRegion(self._cow, self.chunk_size, self.chunk_size)
        has_area = area.end <= self._cow.sectors
        if has_area:
            whole.zero(self._reactor, *area)
        rest = self.chunk_size - (self._unit >> SECTOR_SHIFT)
        if rest:
            whole.zero(self._reactor, self._cow, self._unit >> SECTOR_SHIFT, rest)
        whole.flush(self._reactor, self._cow)
        first = bytearray(self._unit)
        first[:HEADER_BYTES] = StoreHeader(True, VERSION, self.chunk_size).build()
        whole.write(self._reactor, self._cow, 0, bytes(first), fua=True)
        if not has_area:
            area.check()

    def _read_areas(self, exceptions: ExceptionTable) -> None:
        """Read areas until one has an end; that one stays in memory to be continued."""
        reader = _AreaReader(self._reactor, self._cow, self._layout)
        try:
            for area, offset, data in reader.pieces():
                pairs = parse_area(data)
                exceptions.extend(pairs)
                self._allocation.found(pairs[1::2])
                if area != self._area:
                    self._clear()  # it may end before its last piece is read
                self._memory.view[offset : offset + len(data)] = data
                self._area = area
                self._committed = offset // ENTRY_BYTES + len(pairs) // 2
                if len(pairs) < len(data) // 8:
                    # What a torn write left behind the end must not count when that has moved on.
                    end, behind = self._committed * ENTRY_BYTES, offset + len(data)
                    self._memory.view[end:behind] = bytes(behind - end)
                    break
        finally:
            reader.close()

    def _begin_batch(self) -> None:
        """Write what is queued if it is a batch: all that was prepared, or what fills the area."""
        room = self._layout.per_area - self._committed
        if self._writing or not self._queue or (self._pending and len(self._queue) < room):
            return
        self._writing = True
        self._batch, self._queue = self._queue[:room], self._queue[room:]
        place = self._committed * ENTRY_BYTES
        for prepared in self._batch:
            if prepared.failed:
                self._valid = False
            ENTRY.pack_into(self._memory.view, place, prepared.old, prepared.new)
            place += ENTRY_BYTES
        self._committed += len(self._batch)
        self._write_batch()

    def _write_batch(self) -> None:
        if self._committed == self._layout.per_area and self._valid:
            location = self._layout.area_location(self._area + 1) * self.chunk_size
            if location + self.chunk_size > self._cow.sectors:
                self._zeroed(errno.ENOSPC)  # the last slot of an area needs the next area
                return
            region = IoRegion(self._cow, location, self.chunk_size)
            self._reactor.submit(
                Io(Op.WRITE_ZEROES, region, notify=lambda io: self._zeroed(io.error))
            )
        else:
            self._zeroed(0)

    def _zeroed(self, error: int) -> None:
        if error:
            self._valid = False
        if self._valid:
            first = self._committed - len(self._batch)
            end = min(self._committed + 1, self._layout.per_area)  # with the zeroes that end it
            write = self._write_of_entries(first, end)
            write.notify = lambda io: self._batch_written(io.error)
            self._reactor.submit(write)
        else:
            self._batch_written(0)

    def _batch_written(self, error: int) -> None:
        if error:
            self._valid = False
        if self._committed == self._layout.per_area:
            self._area += 1
            self._committed = 0
            self._clear()
        batch, self._batch = self._batch, []
        self._writing = False
        self.on_committed(batch, self._valid)
        self._begin_batch()

    def _clear(self) -> None:
        """Zero the area in memory; a new map costs nothing however large the chunk is."""
        if self._layout.chunk_bytes <= PIECE_BYTES:
            self._memory.view[:] = bytes(self._memory.size_bytes)
        else:
            self._memory.close()
            self._memory = Memory(self._layout.chunk_bytes // PAGE_SIZE)

    def _write_of_entries(self, first: int, end: int) -> Io:
        """Return what flushes the COW, then writes the part of the area with the entries, FUA.

        The kernel writes the whole area; what is left out here is on disk already, or does not
        count, being behind the end.
        """
        unit = self._unit
        start = first * ENTRY_BYTES // unit * unit
        size = -(-end * ENTRY_BYTES // unit) * unit - start
        sector = self._layout.area_location(self._area) * self.chunk_size + (start >> SECTOR_SHIFT)
        region = IoRegion(self._cow, sector, size >> SECTOR_SHIFT)
        return Io(Op.WRITE, region, self._memory, [(start, size)], preflush=True, fua=True)

    def _last_runs(self, most: int) -> list[MergeRun]:
        """Return the runs of exceptions that end the area."""
        end = self._committed
        entries = words(self._memory.view[: end * ENTRY_BYTES])
        runs: list[MergeRun] = []
        chunks: set[int] = set()
        while end:
            run = _last_run(entries, end)
            here = range(run.old, run.old + run.count)
            if runs and (len(chunks) + run.count > most or not chunks.isdisjoint(here)):
                break
            runs.append(run)
            chunks.update(here)
            end -= run.count
        return runs

    async def _read_back(self) -> int:
        """Read the area before the present one, all of whose entries count; return the errno."""
        self._area -= 1
        sector = self._layout.area_location(self._area) * self.chunk_size
        region = IoRegion(self._cow, sector, self.chunk_size)
        read = Io(Op.READ, region, self._memory, [(0, self._layout.chunk_bytes)])
        (error,) = await Requests(self._reactor, [read])
        if error:
            self._area += 1
        else:
            self._committed = self._layout.per_area
        return error


def _last_run(entries: Sequence[int], end: int) -> MergeRun:
    """Return the run of exceptions that is last of the first `end` ones of an area."""
    old, new = entries[2 * end - 2], entries[2 * end - 1]
    count = 1
    while count < end:
        place = 2 * (end - 1 - count)
        if entries[place] != old - 1 or entries[place + 1] != new - 1:
            break
        old, new, count = old - 1, new - 1, count + 1
    return MergeRun(old, new, count)


class _AreaReader:
    """Reads the areas of a store piece by piece, several ahead."""

    def __init__(self, reactor: Reactor, cow: Device, layout: AreaLayout) -> None:
        self._reactor = reactor
        self._cow = cow
        self._layout = layout
        self._piece = min(layout.chunk_bytes, PIECE_BYTES)
        self._per_area = layout.chunk_bytes // self._piece
        self._memory = Memory(-(-self._piece * PREFETCH_CHUNKS // PAGE_SIZE))

    def close(self) -> None:
        """Release the memory of the pieces."""
        self._memory.close()

    def pieces(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield (area, byte offset in it, content). Raises DeviceError where the COW ends."""
        number = 0
        while True:
            requests = [self._request(number, 0)]  # where the COW ends before it, that is an error
            for ahead in range(1, PREFETCH_CHUNKS):
                request = self._request(number + ahead, ahead)
                if request.region.end > self._cow.sectors:
                    break
                requests.append(request)
            self._perform(requests)
            for request in requests:
                if request.error:
                    raise DeviceError(self._cow.path, f"read {request.region}", request.error)
                area, index = divmod(number, self._per_area)
                yield area, index * self._piece, self._memory.read(request.extents)
                number += 1

    def _request(self, number: int, slot: int) -> Io:
        area, index = divmod(number, self._per_area)
        start = self._layout.area_location(area) * self._layout.chunk_bytes + index * self._piece
        region = IoRegion(self._cow, start >> SECTOR_SHIFT, self._piece >> SECTOR_SHIFT)
        return Io(Op.READ, region, self._memory, [(slot * self._piece, self._piece)])

    def _perform(self, requests: list[Io]) -> None:
        """Read; what the store claims to have behind the end of the device ends with EIO."""

        async def read() -> None:
            await Requests(self._reactor, requests)

        wait_for(self._reactor, read(), f"the areas of {self._cow.path}")
