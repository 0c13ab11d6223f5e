"""Reading back what was written and comparing it with the source, byte by byte.

Where I/O is direct the bytes come from the device. Where it is buffered the page cache is asked to
forget them first, which it does for pages that are clean: so everything is flushed before. Where
both files have a hole nothing is read: there is nothing but zeroes to come.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from dmcopy.io.parts import submit_all
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import IoRegion
from dmcopy.io.request import Extent, Io, Memory, Op
from dmcopy.observing import shielded
from dmcopy.ranges import RangeSet
from dmcopy.transfer import events
from dmcopy.transfer.destination import Destination, Failures
from dmcopy.transfer.pace import Pace
from dmcopy.transfer.plan import Piece, TransferPlan, find_holes
from dmcopy.units import PAGE_SIZE, SECTOR_SHIFT, SECTOR_SIZE

_libc = ctypes.CDLL(None)
_memcmp: Any = _libc.memcmp
PROGRESS_SECONDS = 0.1


class Verified:
    """What a verification found: `mismatches` and `unreadable` offsets of each destination."""

    def __init__(self, dests: int) -> None:
        self.mismatches = [RangeSet() for _ in range(dests)]
        self.unreadable = [Failures() for _ in range(dests)]
        self.checked = [0] * dests
        self.interrupted = False
        self.seconds = 0.0

    def is_good(self, index: int) -> bool:
        """Whether all that was written to destination `index` was read back, and is the same."""
        bad = self.mismatches[index] or self.unreadable[index]
        return not bad and not self.interrupted and self.checked[index] > 0


class _Check:
    """One piece that is read from everywhere, into the memory from `base` on: the source first."""

    def __init__(self, piece: Piece, base: int) -> None:
        self.piece = piece
        self.base = base

    def extent(self, place: int) -> Extent:
        """Return where the source's bytes are (`place` 0), or those of target `place` - 1."""
        size = self.piece.length << SECTOR_SHIFT
        return self.base + place * _in_pages(size), size


class Verifier:
    """Compares destinations with the source within `pages` pages, at most `depth` pieces at a time.

    Only what was written is looked at, and not the destinations that were given up. A pool that
    does not hold one block of each device is made just as large as that.
    """

    def __init__(
        self,
        reactor: Reactor,
        plan: TransferPlan,
        dests: Sequence[Destination],
        *,
        pages: int,
        depth: int = 8,
        observer: events.TransferObserver = events.ignore,
        limit: int = 0,
    ) -> None:
        self.result = Verified(len(dests))
        self.finished = False
        self._reactor = reactor
        self._plan = plan
        self._observe = shielded(observer)
        self._pace = Pace(reactor, limit, self._fill)
        needs = [self._need(index, dest) for index, dest in enumerate(dests)]
        self._total = max(need.total() for need in needs)
        self._checked = 0
        self._active = 0
        self._stopping = False
        self._began = 0.0
        self._held: Piece | None = None
        places = 1 + len(dests)
        piece = _piece_sectors(plan, pages // places)
        slot = places * _in_pages(piece << SECTOR_SHIFT)
        slots = max(1, min(depth, pages * PAGE_SIZE // slot))
        self._memory = Memory(slots * slot // PAGE_SIZE)
        self._free = [number * slot for number in range(slots)]
        self._pieces = (
            part for long in plan.with_piece(piece).pieces(needs) for part in _cut(long, piece)
        )

    def _need(self, index: int, dest: Destination) -> RangeSet:
        """Return what is to be read of a destination: not what is a hole here and there."""
        if dest.error:
            return RangeSet()
        holes = RangeSet()
        if self._plan.empty:
            holes = self._plan.zero & find_holes(dest.region, self._plan.block)
        self.result.checked[index] = (dest.written & holes).total()
        return dest.written & RangeSet(holes.gaps(0, dest.region.count))

    def run(self) -> Verified:
        self._began = self._reactor.time()
        for region in self._plan.regions:
            _forget_cache(region)
        self._reactor.call_soon(self._fill)
        self._tick()
        self._reactor.run_until(lambda: self.finished)
        self._memory.close()
        self.result.seconds = self._reactor.time() - self._began
        return self.result

    def interrupt(self) -> None:
        """End it after what is being read now."""
        self.result.interrupted = True
        self._stopping = True
        self._fill()

    def _fill(self) -> None:
        while self._free and not self._stopping:
            piece = self._held or next(self._pieces, None)
            if piece is None:
                break
            self._held = None if self._pace.may_begin() else piece
            if self._held:
                return
            self._pace.began(piece.length)
            self._begin(_Check(piece, self._free.pop()))
        if not self._active and not self.finished:
            self.finished = True
            self._tell_progress()

    def _begin(self, check: _Check) -> None:
        piece, source = check.piece, self._plan.source
        self._active += 1
        places = [(place, self._plan.dests[index]) for place, index in enumerate(piece.targets, 1)]
        if source is None:
            start, size = check.extent(0)
            self._memory.fill([(start, size)], bytes(size))
        else:
            places.insert(0, (0, source))
        reads = []
        for place, region in places:
            part = region.slice(piece.start, piece.length)
            reads.append(Io(Op.READ, part, self._memory, [check.extent(place)]))
        submit_all(self._reactor.submit, reads, partial(self._read_done, check))

    def _read_done(self, check: _Check, reads: Sequence[Io]) -> None:
        self._compare(check, [read.error for read in reads])
        self._free.append(check.base)
        self._active -= 1
        self._checked += check.piece.length
        self._fill()

    def _compare(self, check: _Check, errors: list[int]) -> None:
        piece = check.piece
        source_error = 0 if self._plan.source is None else errors.pop(0)
        for place, index in enumerate(piece.targets, 1):
            error = source_error or errors[place - 1]
            if error:
                self.result.unreadable[index].add(piece.start, piece.end, error)
                continue
            self.result.checked[index] += piece.length
            if not self._same(check, place, 0, check.extent(0)[1]):
                self._narrow(check, place, index)

    def _narrow(self, check: _Check, place: int, index: int) -> None:
        """Find the sectors that differ."""
        found = RangeSet()
        for number in range(check.piece.length):
            if not self._same(check, place, number << SECTOR_SHIFT, SECTOR_SIZE):
                found.add(check.piece.start + number, check.piece.start + number + 1)
        region = self._plan.dests[index]
        for start, end in found:
            self.result.mismatches[index].add(start, end)
            sector = region.sector + start
            self._observe(events.Mismatch(region.device.path, sector, end - start))

    def _same(self, check: _Check, place: int, offset: int, length: int) -> bool:
        base = self._memory.address + offset
        one, other = base + check.extent(0)[0], base + check.extent(place)[0]
        return not _memcmp(ctypes.c_void_p(one), ctypes.c_void_p(other), ctypes.c_size_t(length))

    def _tick(self) -> None:
        if not self.finished:
            self._tell_progress()
            self._reactor.call_later(PROGRESS_SECONDS, self._tick)

    def _tell_progress(self) -> None:
        seconds = self._reactor.time() - self._began
        checked = tuple(self.result.checked)
        self._observe(events.Progress("verify", self._checked, self._total, checked, seconds))


def _piece_sectors(plan: TransferPlan, pages: int) -> int:
    """Return the longest piece, at most the copy's, that fits into `pages` pages."""
    fits = pages * PAGE_SIZE >> SECTOR_SHIFT
    return max(plan.block, min(plan.piece, fits // plan.block * plan.block))


def _in_pages(size: int) -> int:
    """Round up to whole pages: direct I/O wants its memory aligned."""
    return -(-size // PAGE_SIZE) * PAGE_SIZE


def _cut(piece: Piece, size: int) -> list[Piece]:
    """Cut a long piece of zeroes, which are read here like everything else."""
    return [
        piece._replace(start=start, length=min(size, piece.end - start))
        for start in range(piece.start, piece.end, size)
    ]


def _forget_cache(region: IoRegion) -> None:
    """Ask the page cache to forget what it holds of a device that is not read past it."""
    device = region.device
    if getattr(device, "direct", True):
        return
    start, length = region.sector << SECTOR_SHIFT, region.count << SECTOR_SHIFT
    os.posix_fadvise(device.fileno(), start, length, os.POSIX_FADV_DONTNEED)
