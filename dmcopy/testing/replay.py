"""What a log says was written, written again: to a disk that then is as the logged one was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from dmcopy.block import BlockDevice
from dmcopy.errors import UsageError
from dmcopy.ondisk.write_log import Flag
from dmcopy.testing.logfile import LogFile, Logged
from dmcopy.transfer.opening import is_same
from dmcopy.units import format_sectors


@dataclass(frozen=True)
class ReplayRange:
    """Which writes are replayed: entries that touch these sectors, `end` None: to the end."""

    start: int = 0
    end: int | None = None
    discards: bool = True

    def has(self, sector: int, count: int) -> bool:
        """Return whether a range is touched."""
        return sector + count > self.start and (self.end is None or sector < self.end)


def _never(_logged: Logged) -> bool:
    return False


class Replay:
    """Entries of `log`, to be written to the device or file at `disk`; `run` does it.

    Everything is checked here, before anything is written. A discard zeroes, so that one log has
    one outcome. Raises UsageError for a disk that does not fit, and for the log itself.

    Attributes:
        entries: all of them, those that write nothing included.
        sectors: how many sectors are written, zeroed ones included.
    """

    def __init__(
        self, log: LogFile, disk: str, entries: Iterable[Logged], part: ReplayRange | None = None
    ) -> None:
        self.entries = list(entries)
        self.sectors = 0
        self._log = log
        self._disk = disk
        self._part = part or ReplayRange()
        if is_same(disk, [log.path]):
            raise UsageError(f"{disk} is the log itself: name the disk to write to")
        with BlockDevice.open(disk, direct=False) as device:
            self._check(device)

    def run(self, at: Callable[[Logged], bool] = _never) -> Iterator[Logged]:
        """Write the entries in order; yield each for which `at` is true when it is written.

        While the caller has it the disk is flushed and not claimed, so that a program can look at
        it. A caller that leaves the loop leaves the rest unwritten. Raises BusyError, DeviceError.
        """
        left = iter(self.entries)
        ended = False
        while not ended:
            with BlockDevice.open(self._disk, write=True, direct=False) as device:
                ended = True
                for logged in left:
                    self._write(device, logged)
                    if at(logged):
                        ended = False
                        break
                device.flush()
            if not ended:
                yield logged

    def _check(self, device: BlockDevice) -> None:
        if self._log.block_size % device.logical_block_size:
            raise UsageError(
                f"{self._disk} has blocks of {device.logical_block_size} bytes, and "
                f"{self._log.path} is of a disk with blocks of {self._log.block_size}"
            )
        for logged, sector, count in self._writes():
            if sector + count > device.sectors:
                raise UsageError(
                    f"{self._disk} has {format_sectors(device.sectors)}, but entry "
                    f"{logged.number} of {self._log.path} wrote {count} sectors from {sector}: "
                    "give it a disk as large as the one that was logged"
                )
            self.sectors += count

    def _writes(self) -> Iterator[tuple[Logged, int, int]]:
        for logged in self.entries:
            if (place := self._place(logged)) is not None:
                yield logged, *place

    def _place(self, logged: Logged) -> tuple[int, int] | None:
        """Return the sectors that an entry is to write, None for none."""
        unit = self._log.block_sectors
        sector, count = logged.entry.sector * unit, logged.entry.nr_sectors * unit
        is_left_out = bool(logged.entry.flags & Flag.DISCARD) and not self._part.discards
        if not count or is_left_out or not self._part.has(sector, count):
            return None
        return sector, count

    def _write(self, device: BlockDevice, logged: Logged) -> None:
        if (place := self._place(logged)) is None:
            return
        if logged.entry.flags & Flag.DISCARD:
            device.zero_out(*place)
        else:
            device.pwrite(place[0], self._log.data(logged))
