"""Many small copies as few requests: neighbours are read together, and written together.

    moves → by source: reads, which lie one behind the other in memory → by destination: writes

A COW's chunks are in the order in which they were changed, so what is scattered over the origin
lies side by side there: it is read in one piece, and each write takes its parts from wherever in
that piece they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Final, NamedTuple

from dmcopy.io.region import Device, IoRegion
from dmcopy.io.request import Extent, Part
from dmcopy.units import PAGE_SECTORS, SECTOR_SHIFT

GAP_SECTORS: Final = 64
"""What lies between two reads is read along with them up to 32 KiB: about what a request costs."""
MAX_EXTENTS: Final = 512
"""Half of IOV_MAX: more a request cannot have, and each may end up in two runs of pages."""


class Move(NamedTuple):
    """Copy `count` sectors of `source` from `sector` on to sector `dest` of what is written."""

    source: Device
    sector: int
    dest: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which no caller misses


class Placed(NamedTuple):
    """A move whose data is at byte `offset` of a memory."""

    dest: int
    offset: int
    move: Move


def gather(moves: Iterable[Move], spare: int, at: int = 0) -> tuple[list[Part], list[Placed]]:
    """Return few reads for `moves`, and where each move's data will be.

    `spare`: how many sectors may be read in vain. `at`: the memory's first sector that is free.
    Reads are of whole blocks: the end of a last chunk that is a short one is read, too.
    """
    sources: dict[int, list[Move]] = {}
    for move in moves:
        sources.setdefault(id(move.source), []).append(move)
    reads: list[Part] = []
    placed: list[Placed] = []
    for here in sources.values():
        for run, gaps in _runs(sorted(here, key=itemgetter(1)), spare):
            spare -= gaps
            device, first, _, _ = run[0]
            block = device.logical_block_size >> SECTOR_SHIFT
            at += -at % min(block, PAGE_SECTORS)
            for move in run:
                placed.append(Placed(move[2], (at + move[1] - first) << SECTOR_SHIFT, move))
            count = run[-1][1] + run[-1][3] - first
            count += -count % block
            extent = (at << SECTOR_SHIFT, count << SECTOR_SHIFT)
            reads.append(Part(IoRegion(device, first, count), [extent]))
            at += count
    return reads, placed


def scatter(placed: Iterable[Placed], device: Device) -> list[Part]:
    """Return the fewest writes that bring what is in memory to its places on `device`."""
    writes: list[Part] = []
    extents: list[Extent] = []
    begin = end = -1
    for dest, offset, move in sorted(placed):
        size = move[3] << SECTOR_SHIFT
        if dest != end or len(extents) == MAX_EXTENTS:
            if extents:
                writes.append(Part(IoRegion(device, begin, end - begin), extents))
            begin, extents = dest, [(offset, size)]
        elif sum(extents[-1]) == offset:
            extents[-1] = (extents[-1][0], extents[-1][1] + size)
        else:
            extents.append((offset, size))
        end = dest + move[3]
    writes.append(Part(IoRegion(device, begin, end - begin), extents))
    return writes


def _runs(moves: list[Move], spare: int) -> Iterator[tuple[list[Move], int]]:
    """Yield moves that are read together, and how much lies between them that is not wanted."""
    run: list[Move] = []
    end = gaps = 0
    for move in moves:
        gap = move[1] - end
        if run and 0 <= gap <= GAP_SECTORS and gap <= spare:
            run.append(move)
            gaps += gap
            spare -= gap
        else:
            if run:
                yield run, gaps
            run, gaps = [move], 0
        end = move[1] + move[3]
    yield run, gaps
