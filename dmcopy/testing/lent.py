"""A disk over content that is only lent to it: what a check sees of a power cut, and may change.

A check changes little of a disk, and a power cut undoes little. So there is one image of each disk,
which is never copied: what was written to it is put right again before the next check.
"""

from __future__ import annotations

from dmcopy.io.simulated import SimulatedDisk
from dmcopy.units import SECTOR_SHIFT


class LentDisk(SimulatedDisk):
    """A disk that holds `content`, until `give_back`. It loses nothing: its power is not cut."""

    def __init__(self, content: bytearray, name: str, block_size: int) -> None:
        super().__init__(0, name, logical_block_size=block_size)
        self.sectors = len(content) >> SECTOR_SHIFT
        self.content = content
        self._before: list[tuple[int, bytes]] = []

    def load(self, data: bytes | bytearray) -> None:
        self.write(0, bytes(data))

    def write(self, sector: int, data: bytes, *, durable: bool = False) -> None:
        """Write, and remember what was there."""
        del durable
        place = slice(start := sector << SECTOR_SHIFT, start + len(data))
        self._before.append((start, bytes(self.content[place])))
        self.content[place] = data

    def flush(self, upto: int | None = None) -> None:
        """Do nothing: nothing is lost."""

    def give_back(self, *, in_use: bool) -> None:
        """Put the content right; whatever still uses the disk has a copy of it."""
        content = self.content
        if in_use:
            self.content = content[:]
        self.vanished = not in_use
        for start, data in reversed(self._before):
            content[start : start + len(data)] = data
