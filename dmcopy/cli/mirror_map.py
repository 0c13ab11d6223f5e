"""The map of a mirror's regions, drawn in blocks: which are clean, which are dirty."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dmcopy.cli.output import terminal_width
from dmcopy.ondisk.mirror_log import MirrorLog
from dmcopy.table.record import Ratio

SHADES: Final = "░▒▓█"
"""From all dirty to all clean; a cell that is neither is never drawn as if it were."""
_ROWS: Final = 16


def draw(sync: Ratio, log: MirrorLog | None, *, width: int | None = None) -> Iterator[str]:
    """Yield the rows of the map of a disk log, or one bar where the log is in memory."""
    columns = max(8, (terminal_width() if width is None else width) - 4)
    if log is None:
        done = columns * sync.used // sync.total if sync.total else 0
        yield f"  {SHADES[-1] * done}{SHADES[0] * (columns - done)}"
        yield "  the log is in memory: how many regions are in sync is known, not which"
        return
    dirty = list(log.dirty())
    cells = min(log.nr_regions, columns * _ROWS)
    row = "".join(_shade(clean, size) for clean, size in _cells(log.nr_regions, dirty, cells))
    for start in range(0, len(row), columns):
        yield f"  {row[start : start + columns]}"
    each = -(-log.nr_regions // cells) if cells else 0
    yield f"  {len(dirty)} of {log.nr_regions} regions are dirty; a cell is up to {each}"


def _cells(regions: int, dirty: list[int], cells: int) -> Iterator[tuple[int, int]]:
    """Yield how many regions of each cell are clean, and how many it has."""
    counts = [0] * cells
    for region in dirty:
        counts[region * cells // regions] += 1
    for cell, count in enumerate(counts):
        # The regions with region * cells // regions == cell.
        size = -(-(cell + 1) * regions // cells) - -(-cell * regions // cells)
        yield size - count, size


def _shade(clean: int, size: int) -> str:
    if clean == size:
        return SHADES[-1]
    if not clean:
        return SHADES[0]
    return SHADES[1] if 2 * clean < size else SHADES[2]
