"""Comparing the legs of a mirror, region by region, and with what its log says.

    with BlockDevice.open("a") as a, BlockDevice.open("b") as b:
        report = compare([IoRegion(a, 0, a.sectors), IoRegion(b, 0, b.sectors)], 1024)
    for first, end in report.differing: ...

Everything is read once, in pieces of 1 MiB, some of them ahead; nothing is written.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from dmcopy.errors import UsageError
from dmcopy.io.parts import submit_all
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import IoRegion
from dmcopy.io.request import Io, Memory, Op
from dmcopy.observing import shielded
from dmcopy.ondisk.mirror_log import MirrorLog, region_count
from dmcopy.ranges import RangeSet
from dmcopy.table.mirror import MAX_LEGS
from dmcopy.transfer.events import Progress, TransferObserver, ignore
from dmcopy.units import PAGE_SIZE, SECTOR_SHIFT

PIECE: Final = 2048
DEPTH: Final = 4
PROGRESS_SECONDS: Final = 0.1
_memcmp: Any = ctypes.CDLL(None).memcmp


@dataclass
class MirrorReport:
    """What a comparison found; regions are half-open ranges of their numbers.

    Attributes:
        regions, region_size: of the mirror; the size in sectors.
        differing: regions in which the legs that could be read differ.
        by_leg: for each leg but the first, where it differs from the first.
        unreadable: for each leg, the regions of it that cannot be read.
        log: what was given.
        interrupted: it was ended early, and what was not looked at may differ.
    """

    regions: int
    region_size: int
    differing: RangeSet = field(default_factory=RangeSet)
    by_leg: list[RangeSet] = field(default_factory=list)
    unreadable: list[RangeSet] = field(default_factory=list)
    log: MirrorLog | None = None
    interrupted: bool = False

    @property
    def unknown(self) -> RangeSet:
        """The differing regions that no resync would copy: the log calls them clean."""
        return self._split(clean=True) if self.log else self.differing

    @property
    def known(self) -> RangeSet:
        """The differing regions that the log calls dirty: the next resync copies them."""
        return self._split(clean=False) if self.log else RangeSet()

    @property
    def is_readable(self) -> bool:
        """Whether every leg could be read everywhere."""
        return not any(self.unreadable)

    def _split(self, *, clean: bool) -> RangeSet:
        assert self.log is not None
        found = RangeSet()
        for first, end in self.differing:
            for region in range(first, end):
                # A region that the log does not have is dirty to a mirror that takes the log.
                if (region < self.log.nr_regions and self.log.clean[region]) == clean:
                    found.add(region, region + 1)
        return found


def compare(
    legs: Sequence[IoRegion],
    region_size: int,
    *,
    log: MirrorLog | None = None,
    reactor: Reactor | None = None,
    observe: TransferObserver = ignore,
) -> MirrorReport:
    """Compare `legs`, 2 to 9 regions of one length, in mirror regions of `region_size` sectors.

    `reactor`: where it runs, by default one of its own. An unreadable region is reported and does
    not end the comparison. Raises UsageError for what cannot be the legs of one mirror.
    """
    if reactor is not None:
        return LegComparison(reactor, legs, region_size, log=log, observe=observe).run()
    with Reactor() as own:
        return LegComparison(own, legs, region_size, log=log, observe=observe).run()


def guess_region_size(sectors: int, log: MirrorLog) -> int:
    """Return the region size that makes the log's number of regions of `sectors`.

    There is at most one: powers of two up to `sectors` all make different numbers. Raises
    UsageError when there is none.
    """
    for shift in range(1, sectors.bit_length()):
        if region_count(sectors, 1 << shift) == log.nr_regions:
            return 1 << shift
    raise UsageError(
        f"the log has {log.nr_regions} regions, and no region size makes that many of legs of "
        f"{sectors} sectors: give the region size of the mirror's table"
    )


def _check(legs: Sequence[IoRegion], region_size: int) -> None:
    if not 2 <= len(legs) <= MAX_LEGS:
        raise UsageError(f"a mirror has 2 to {MAX_LEGS} legs, not {len(legs)}")
    if region_size < 2 or region_size & (region_size - 1):
        raise UsageError(
            f"a region size is a power of two of at least 2 sectors, not {region_size}"
        )
    first = legs[0]
    for number, leg in enumerate(legs):
        leg.check()
        if leg.count != first.count:
            raise UsageError(
                f"the legs differ in length: {first.device.path} has {first.count} sectors, "
                f"{leg.device.path} has {leg.count}: give the length to compare"
            )
        for other in legs[:number]:
            if leg.overlaps(other):
                raise UsageError(f"{leg} and {other} are the same place of one device")
    if not first.count:
        raise UsageError(f"{first.device.path} has nothing to compare: 0 sectors")


class _Piece:
    """A run of sectors that is read from every leg, side by side, into the memory from `base`."""

    def __init__(self, start: int, count: int, base: int) -> None:
        self.start = start
        self.count = count
        self.base = base
        self.failed: list[int] = []


class LegComparison:
    """A run of `compare`: `DEPTH` pieces are read at a time, and compared when one is all there."""

    def __init__(
        self,
        reactor: Reactor,
        legs: Sequence[IoRegion],
        region_size: int,
        *,
        log: MirrorLog | None = None,
        observe: TransferObserver = ignore,
    ) -> None:
        _check(legs, region_size)
        self._report = MirrorReport(region_count(legs[0].count, region_size), region_size, log=log)
        self._report.by_leg = [RangeSet() for _ in legs[1:]]
        self._report.unreadable = [RangeSet() for _ in legs]
        self._reactor = reactor
        self._legs = legs
        self._observe = shielded(observe)
        self._length = legs[0].count
        self._todo = self._pieces(0, self._length, PIECE)
        self._again: list[Iterator[tuple[int, int]]] = []
        self._active = 0
        self._done = 0
        slot = PIECE << SECTOR_SHIFT
        self._memory = Memory(DEPTH * len(legs) * slot // PAGE_SIZE)
        self._free = [number * len(legs) * slot for number in range(DEPTH)]
        self._began = reactor.time()
        self._told = self._began

    def run(self) -> MirrorReport:
        self._fill()
        self._reactor.run_until(lambda: not self._active)
        self._tell(final=True)
        self._memory.close()
        return self._report

    def interrupt(self) -> None:
        """End it after what is being read now. From a signal handler, too."""
        self._report.interrupted = True

    def _pieces(self, start: int, end: int, size: int) -> Iterator[tuple[int, int]]:
        return ((place, min(size, end - place)) for place in range(start, end, size))

    def _next(self) -> tuple[int, int] | None:
        while self._again:
            piece = next(self._again[-1], None)
            if piece is not None:
                return piece
            self._again.pop()
        return next(self._todo, None)

    def _fill(self) -> None:
        while self._free and not self._report.interrupted and (place := self._next()) is not None:
            piece = _Piece(*place, self._free.pop())
            self._active += 1
            reads = []
            for number, leg in enumerate(self._legs):
                extent = (self._place(piece, number), piece.count << SECTOR_SHIFT)
                region = leg.slice(piece.start, piece.count)
                reads.append(Io(Op.READ, region, self._memory, [extent]))
            submit_all(self._reactor.submit, reads, partial(self._read_done, piece))

    def _place(self, piece: _Piece, leg: int) -> int:
        return piece.base + leg * (PIECE << SECTOR_SHIFT)

    def _read_done(self, piece: _Piece, reads: Sequence[Io]) -> None:
        piece.failed = [number for number, read in enumerate(reads) if read.error]
        self._active -= 1
        self._free.append(piece.base)
        if piece.failed and piece.count > self._report.region_size:
            # Which of its regions it is that cannot be read is found by reading each by itself.
            end = piece.start + piece.count
            self._again.append(self._pieces(piece.start, end, self._report.region_size))
        else:
            self._compare(piece)
            self._done += piece.count
            self._tell()
        self._fill()

    def _compare(self, piece: _Piece) -> None:
        size = self._report.region_size
        good = [number for number in range(len(self._legs)) if number not in piece.failed]
        for number in piece.failed:
            region = piece.start // size
            self._report.unreadable[number].add(region, region + 1)
        for number in good[1:]:
            for start, count in self._unlike(piece, good[0], number, size):
                first, end = start // size, -(-(start + count) // size)
                self._report.differing.add(first, end)
                if good[0] == 0:
                    self._report.by_leg[number - 1].add(first, end)

    def _unlike(self, piece: _Piece, one: int, other: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of `piece`, by regions, in which two legs differ."""
        if self._same(piece, one, other, 0, piece.count):
            return
        for start, count in self._pieces(0, piece.count, size):
            if not self._same(piece, one, other, start, count):
                yield piece.start + start, count

    def _same(self, piece: _Piece, one: int, other: int, start: int, count: int) -> bool:
        base = self._memory.address + (start << SECTOR_SHIFT)
        first, second = base + self._place(piece, one), base + self._place(piece, other)
        length = ctypes.c_size_t(count << SECTOR_SHIFT)
        return not _memcmp(ctypes.c_void_p(first), ctypes.c_void_p(second), length)

    def _tell(self, *, final: bool = False) -> None:
        now = self._reactor.time()
        if final or now - self._told >= PROGRESS_SECONDS:
            self._told = now
            seconds = now - self._began
            self._observe(Progress("compare", self._done, self._length, (self._done,), seconds))
