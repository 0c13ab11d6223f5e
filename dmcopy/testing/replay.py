"""What a log says was written, written again: to a disk that then is as the logged one was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from dmcopy.block import BlockDevice
from dmcopy.errors import UsageError
from dmcopy.ondisk.write_log import LogFlag
from dmcopy.testing.logfile import LogFile, Logged
from dmcopy.testing.recording import fates
from dmcopy.transfer.opening import is_same
from dmcopy.units import SECTOR_SHIFT, format_sectors

_PIECE: Final = 2048


@dataclass(frozen=True)
class ReplayRange:
    """Which writes are replayed: what touches sectors from `start` on, before `end`; None: all."""

    start: int = 0
    end: int | None = None
    discards: bool = True

    def has(self, sector: int, count: int) -> bool:
        """Return whether a range is touched."""
        return sector + count > self.start and (self.end is None or sector < self.end)


def _never(_logged: Logged) -> bool:
    return False


class State(NamedTuple):
    """A disk's content at entry `logged`: with all until there, or what a power cut left of it.

    `kept`: of the entries that the power cut undid which sectors stayed, bit by bit; 0: none, it is
    lost. `seed`: by which that was chosen, None where whatever the seeds are it is tried.
    """

    logged: Logged
    seed: int | None = None
    kept: Mapping[int, int] = {}


class _Written(NamedTuple):
    """An entry behind the last flush, and what was there before where it was not zeroes."""

    logged: Logged
    sector: int
    sectors: int
    before: list[tuple[int, bytes]]

    @property
    def tearable(self) -> int:
        """How many sectors of it a power cut may undo by themselves: a discard is undone whole."""
        return 1 if self.logged.entry.flags & LogFlag.DISCARD else self.sectors


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
        self._unflushed: list[_Written] | None = None
        self._flushed = False
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

    def states(self, at: Callable[[Logged], bool], seeds: Iterable[int]) -> Iterator[State]:
        """As `run`, and where `at` is true also what power cuts there may have left of the disk.

        They undo what is behind the last flush, FUA writes excepted: all of these entries, few
        singly, and as seeds say, each lost, kept or torn by sector. At a flush it is not done yet.
        Takes memory for what was overwritten since the flush before it.
        """
        self._unflushed, self._flushed = [], False
        seeds = list(seeds)
        for logged in self.run(at):
            sectors = {
                written.logged.number: written.tearable
                for written in self._unflushed
                if not written.logged.entry.flags & LogFlag.FUA
            }
            seen: list[Mapping[int, int]] = []
            for seed, kept in fates(logged.number, sectors, seeds):
                if kept not in seen:
                    seen.append(kept)
                    if kept:
                        self._undo(kept)
                    yield State(logged, seed, kept)
            if len(seen) > 1:
                self._undo({})

    def _undo(self, kept: Mapping[int, int]) -> None:
        """Have the disk be as at the last flush, and with what was kept of the entries since."""
        unflushed = self._unflushed or []
        with BlockDevice.open(self._disk, write=True, direct=False) as device:
            for written in reversed(unflushed):
                device.zero_out(written.sector, written.sectors)
                for sector, data in written.before:
                    device.pwrite(sector, data)
            for written in unflushed:
                bits = kept.get(written.logged.number)
                if bits is None:
                    self._put(device, written.logged, written.sector, written.sectors)
                elif bits:
                    data = self._log.data(written.logged)
                    for first, end in _runs(bits):
                        part = data[first << SECTOR_SHIFT : end << SECTOR_SHIFT]
                        device.pwrite(written.sector + first, part)
            device.flush()

    def _check(self, device: BlockDevice) -> None:
        if self._log.block_size % device.logical_block_size:
            raise UsageError(
                f"{self._disk} has blocks of {device.logical_block_size} bytes, and "
                f"{self._log.path} is of a disk with blocks of {self._log.block_size}: give it a "
                "disk with blocks of that size"
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
        is_left_out = bool(logged.entry.flags & LogFlag.DISCARD) and not self._part.discards
        if not count or is_left_out or not self._part.has(sector, count):
            return None
        return sector, count

    def _write(self, device: BlockDevice, logged: Logged) -> None:
        place = self._place(logged)
        if self._unflushed is not None:
            flushes = bool(logged.entry.flags & LogFlag.FLUSH)
            if self._flushed or (flushes and logged.entry.nr_sectors):  # a flush before a write
                self._unflushed.clear()
            self._flushed = flushes and not logged.entry.nr_sectors
            if place is not None:
                self._unflushed.append(_Written(logged, *place, _held(device, *place)))
        if place is not None:
            self._put(device, logged, *place)

    def _put(self, device: BlockDevice, logged: Logged, sector: int, count: int) -> None:
        if logged.entry.flags & LogFlag.DISCARD:
            device.zero_out(sector, count)
        else:
            device.pwrite(sector, self._log.data(logged))


def _held(device: BlockDevice, sector: int, count: int) -> list[tuple[int, bytes]]:
    """Return what is there but zeroes, in pieces."""
    pieces = range(sector, sector + count, _PIECE)
    read = ((at, device.pread(at, min(_PIECE, sector + count - at))) for at in pieces)
    return [(at, data) for at, data in read if data.count(0) < len(data)]


def _runs(bits: int) -> Iterator[tuple[int, int]]:
    """Yield where runs of bits that are set begin and end."""
    end = 0
    while bits >> end:
        first = end
        while not bits >> first & 1:
            first += 1
        end = first
        while bits >> end & 1:
            end += 1
        yield first, end
