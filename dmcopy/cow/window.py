"""A window: some moves that are under way together, in memory of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Final

from dmcopy.cow.gathering import Move, Part, Placed, gather, scatter
from dmcopy.errors import DeviceError
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device, IoRegion
from dmcopy.io.request import Io, Memory, Op
from dmcopy.units import PAGE_SECTORS, SECTOR_SHIFT

WINDOW_SECTORS: Final = 2048
SPARE_SECTORS: Final = 1024
"""How much of a window's memory may be filled in vain: the rest is for whole blocks."""


class Window:
    """Moves that are under way together: all reads, then all writes; then `ended` is called.

    A read that failed is done over chunk by chunk: what lies between two chunks need not be
    readable, and of chunks that are not it is told which.
    """

    def __init__(
        self, reactor: Reactor, dest: Device, chunk_size: int, ended: Callable[[Window], object]
    ) -> None:
        self.sectors = 0
        self.error: DeviceError | None = None
        self._submit = reactor.submit
        self._dest = dest
        self._chunk_size = chunk_size
        self._ended = ended
        self._memory = Memory(2 * WINDOW_SECTORS // PAGE_SECTORS)
        self._placed: list[Placed] = []
        self._writes: list[Part] = []
        self._failed: list[Io] = []
        self._left = 0

    def begin(self, moves: Sequence[Move]) -> None:
        """Start to do moves, which fit into a window together. Raises UsageError."""
        reads, self._placed = gather(moves, SPARE_SECTORS)
        self._writes = scatter(self._placed, self._dest)
        first, last = self._writes[0].region, self._writes[-1].region
        first._replace(count=last.end - first.sector).check(write=True)
        self.sectors = sum(move.count for move in moves)
        self._start(Op.READ, reads, self._read_done)

    def _start(self, op: Op, parts: Sequence[Part], notify: Callable[[Io], object]) -> None:
        self._failed = []
        self._left = len(parts)
        for region, extents in parts:
            self._submit(Io(op, region, self._memory, extents, notify))

    def _is_last(self, request: Io) -> bool:
        if request.error:
            self._failed.append(request)
        self._left -= 1
        return not self._left

    def _read_done(self, read: Io) -> None:
        if not self._is_last(read):
            return
        if self._failed:
            self._start(Op.READ, list(self._chunks()), self._chunk_read)
        else:
            self._start(Op.WRITE, self._writes, self._write_done)

    def _chunks(self) -> Iterator[Part]:
        """Yield the reads that failed in pieces of a chunk, without what is between them."""
        failed = [request.extents[0] for request in self._failed]
        for _, offset, move in self._placed:
            if not any(start <= offset < start + length for start, length in failed):
                continue
            block = move.source.logical_block_size >> SECTOR_SHIFT
            for done in range(0, move.count, self._chunk_size):
                count = min(self._chunk_size, move.count - done)
                count += -count % block
                extent = (offset + (done << SECTOR_SHIFT), count << SECTOR_SHIFT)
                yield Part(IoRegion(move.source, move.sector + done, count), [extent])

    def _chunk_read(self, read: Io) -> None:
        if not self._is_last(read):
            return
        if self._failed:
            first = min(self._failed, key=self._target)
            number = self._target(first) // self._chunk_size
            self._end(failed("read", first, f"this is chunk {number} of the snapshot"))
        else:
            self._start(Op.WRITE, self._writes, self._write_done)

    def _target(self, read: Io) -> int:
        """Return the sector that what was read goes to."""
        at = read.extents[0][0]
        dest, offset, _ = max(
            (one for one in self._placed if one.offset <= at), key=attrgetter("offset")
        )
        return dest + (at - offset >> SECTOR_SHIFT)

    def _write_done(self, write: Io) -> None:
        if self._is_last(write):
            self._end(failed("write", self._failed[0]) if self._failed else None)

    def _end(self, error: DeviceError | None) -> None:
        self.error = error
        self._ended(self)


def failed(action: str, request: Io, hint: str = "") -> DeviceError:
    """Return the error of a request."""
    what = f"{action} {request.count} sectors from {request.sector}"
    return DeviceError(request.device.path, what, request.error, hint)
