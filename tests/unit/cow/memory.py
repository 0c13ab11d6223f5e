"""A disk in memory that can be read without waiting, as a `CowDevice` is."""

from __future__ import annotations

from dmcopy.errors import UsageError
from dmcopy.io.simulated import SimulatedDisk


class MemoryDisk(SimulatedDisk):
    """A simulated disk with `pread`. `reads` has every read that there was."""

    def __init__(self, content: bytes | bytearray, name: str = "cow") -> None:
        super().__init__(len(content) >> 9, name)
        self.load(bytes(content[: len(content) >> 9 << 9]))
        self.reads: list[tuple[int, int]] = []

    def pread(self, sector: int, count: int) -> bytes:
        """Return what is there. Raises UsageError past the end, as a BlockDevice does."""
        if sector < 0 or sector + count > self.sectors:
            raise UsageError(f"{self.path}: {count} sectors from {sector} are not there")
        self.reads.append((sector, count))
        return self.read(sector, count)
