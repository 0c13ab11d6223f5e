"""A region: a run of sectors on one device, as in the kernel's `struct dm_io_region`."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, Protocol

from dmcopy.errors import UsageError


class Device(Protocol):
    """What the I/O layer asks of a device: `dmcopy.block.BlockDevice`, or a simulated disk."""

    @property
    def path(self) -> str:
        """The device's name in messages."""

    @property
    def sectors(self) -> int:
        """Its size in sectors."""

    @property
    def logical_block_size(self) -> int:
        """The smallest unit of I/O in bytes; every region starts and ends on such a block."""

    @property
    def read_only(self) -> bool:
        """Whether this handle cannot write."""

    @property
    def write_through(self) -> bool:
        """Whether what has been written is durable without a flush, at this moment."""

    @property
    def identity(self) -> Hashable:
        """Equal for two handles of the same device."""

    def fileno(self) -> int:
        """The file descriptor that I/O goes through."""

    def flush(self) -> None:
        """Make everything written so far durable."""

    def discard(self, sector: int, count: int) -> None:
        """Tell the device that a range is no longer needed."""

    def zero_out(self, sector: int, count: int) -> None:
        """Make a range read as zeroes."""


class IoRegion(NamedTuple):
    """`count` sectors of `device`, beginning at `sector`."""

    device: Device
    sector: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which no caller misses

    @property
    def end(self) -> int:
        """The sector behind the last one."""
        return self.sector + self.count

    def slice(self, offset: int, count: int) -> IoRegion:
        """Return the region of `count` sectors that begins `offset` sectors into this one."""
        return IoRegion(self.device, self.sector + offset, count)

    def overlaps(self, other: IoRegion) -> bool:
        """Return whether the two share a sector of the same device."""
        return (
            self.sector < other.sector + other.count
            and other.sector < self.sector + self.count
            and self.device.identity == other.device.identity
        )

    def check(self, *, write: bool = False) -> None:
        """Raise UsageError unless it lies on the device, on whole blocks, and may be written."""
        device, sector, count = self
        if sector < 0 or count < 0:
            raise UsageError(f"{self} begins or ends before the device does")
        if sector + count > device.sectors:
            raise UsageError(
                f"{self} ends at sector {sector + count}, past the end of the device "
                f"at sector {device.sectors}"
            )
        if ((sector | count) << 9) % device.logical_block_size:
            raise UsageError(
                f"{self} is not on whole blocks of {device.path}, "
                f"which has blocks of {device.logical_block_size} bytes"
            )
        if write and device.read_only:
            raise UsageError(f"{device.path} is read-only, or was not opened for writing")

    def __str__(self) -> str:
        return f"{self.device.path} sectors {self.sector}+{self.count}"
