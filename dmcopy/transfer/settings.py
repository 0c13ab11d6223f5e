"""How a copy is done by default: back end, depth, piece and pages.

Measured on RAM-backed loop devices and on files of a virtio disk, two cores, kernel 6.18, medians
of five rounds, before large pools had huge pages (`scripts/bench copy` measures it again):

    loops   1→1 of 512 KiB  threads 2930   uring 2770 MB/s   1→1 of 256 KiB   2220   2580
            1→3 of 256 KiB          1200        1260         1→1 of  64 KiB    950   1410
    files   1→1 of 1 MiB             780         740         1→3 of 1 MiB      520    460

With them, 1→1 of 1 MiB and 4 GiB of loops, as whole commands: threads 939 ms, ring 877 ms with 8 in
flight and 902 ms with 4, and 38 to 53 us of processor time a piece instead of 63.

So devices get the ring; for large pieces of files it is workers that each do a whole copy, the read
and then the writes: a write to a file may have to wait inside the kernel, which an io_uring hands
to a thread of its own. A depth beyond 8 gains nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, NamedTuple

from dmcopy.errors import UsageError
from dmcopy.io.backend import probe
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import IoRegion
from dmcopy.kcopyd.client import MAX_SUB_JOB_SECTORS
from dmcopy.transfer.plan import block_of
from dmcopy.units import PAGE_SECTORS, PAGE_SIZE, SECTOR_SHIFT, format_bytes

DEPTH: Final = 8
BULK_SECTORS: Final = 1024
"""From this size on a piece is bulk: moving it costs more than handing it over."""

PIECES_A_SECOND: Final = 8
"""The fewest that begin each second where there is a limit: no long pauses, no bursts."""


class Settings(NamedTuple):
    """The final choice. `pages` of 4096 bytes, `piece` in sectors."""

    backend: str
    depth: int
    piece: int
    pages: int

    @property
    def sub_job(self) -> int:
        """The sub-job size for a `Client`: the piece, in whole pages."""
        return -(-self.piece // PAGE_SECTORS) * PAGE_SECTORS

    @property
    def outstanding(self) -> int:
        """How many jobs to give to the client together, so that it always has a next one."""
        return 2 * self.depth

    def reactor(self) -> Reactor:
        """Return a reactor of the calling thread. With a depth of 1, plain calls are quickest."""
        return Reactor(self.backend, inline=self.depth == 1)


def choose(
    source: IoRegion | None,
    dests: Sequence[IoRegion],
    *,
    backend: str | None = None,
    depth: int | None = None,
    piece: int | None = None,
    pages: int | None = None,
    limit: int = 0,
) -> Settings:
    """Choose what was not given. Raises UsageError for what does not go together.

    With a `limit`, in bytes a second, the pieces are so small that some of them go each second.
    """
    block = block_of((source, *dests) if source else dests)
    _check(block, depth, piece, pages)
    depth = depth or DEPTH
    if piece is None:
        piece = _fitting(block, pages)
        if limit:
            often = (limit // PIECES_A_SECOND >> SECTOR_SHIFT) // block * block
            piece = min(piece, max(often, block, PAGE_SECTORS))
    return Settings(
        backend=backend or os.environ.get("DMCOPY_IO") or _best(source, dests, piece),
        depth=depth,
        piece=piece,
        pages=pages or depth * -(-piece // PAGE_SECTORS),
    )


def _check(block: int, depth: int | None, piece: int | None, pages: int | None) -> None:
    if depth is not None and not 1 <= depth <= 1024:
        raise UsageError(f"the depth is 1 to 1024 requests in flight, not {depth}")
    if pages is not None and pages * PAGE_SECTORS < block:
        raise UsageError(
            f"{pages} pages are less than one block of {block << SECTOR_SHIFT} bytes: "
            f"give at least --pages {-(-block // PAGE_SECTORS)}"
        )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if pages is not None and pages * PAGE_SIZE > memory:
        raise UsageError(
            f"{pages} pages are {format_bytes(pages * PAGE_SIZE)}, and this machine has "
            f"{format_bytes(memory)} of memory"
        )
    if piece is None:
        return
    if not block <= piece <= MAX_SUB_JOB_SECTORS or piece % block:
        raise UsageError(
            f"a piece is {format_bytes(block << SECTOR_SHIFT)} (one block) to 1 MiB in whole "
            f"blocks, not {format_bytes(piece << SECTOR_SHIFT)}"
        )
    if pages is not None and pages * PAGE_SECTORS < piece:
        raise UsageError(
            f"{pages} pages hold less than one piece of {format_bytes(piece << SECTOR_SHIFT)}: "
            f"give at least --pages {-(-piece // PAGE_SECTORS)}, or a smaller --piece"
        )


def _fitting(block: int, pages: int | None) -> int:
    """Return the largest piece of which a given pool holds four, so that they can overlap."""
    if pages is None:
        return MAX_SUB_JOB_SECTORS
    quarter = pages * PAGE_SECTORS // 4 // PAGE_SECTORS * PAGE_SECTORS
    return min(MAX_SUB_JOB_SECTORS, max(quarter // block * block, block))


def _best(source: IoRegion | None, dests: Sequence[IoRegion], piece: int) -> str:
    if source is None:
        return "threads"
    has_file = not all(_is_block(region) for region in (source, *dests))
    if has_file and piece >= BULK_SECTORS:
        return "threads"
    return "threads" if probe()["uring"] else "uring"


def _is_block(region: IoRegion) -> bool:
    return bool(getattr(region.device, "is_block", False))
