"""Faults on ranges of a device, in lvm2's words, and back to health.

The device is one of linear lines over something else; a fault cuts a range out of them and puts a
misbehaving target there. Ranges are in sectors, of the device itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from dmcopy.errors import UsageError
from dmcopy.mapper.device import DmDevice
from dmcopy.table import Delay, Delayed, Error, Flakey, Linear, Table, TableLine, Target, Zero
from dmcopy.units import parse_count

ALWAYS = 10**6  # seconds that a flakey target stays bad before it is good for none
Range: TypeAlias = str | tuple[int, int]
_Make: TypeAlias = Callable[[TableLine], Target]


class Faulty:
    """A device whose sectors can be made to fail. A later fault wins over an earlier one.

    `flush` False, the default, is what a disk that fails under load looks like: I/O that is queued
    meets the fault. A device with I/O that never ends can be healed only that way.
    """

    def __init__(self, device: DmDevice, table: Table | None = None) -> None:
        self.device = device
        self.healthy = table if table is not None else device.table
        self.table = self.healthy
        odd = [line for line in self.healthy if not isinstance(line.target, Linear)]
        if odd or not self.healthy.lines:
            raise UsageError(
                f"{device.name} is not made of linear lines only: put a linear device over it"
            )

    def __fspath__(self) -> str:
        return self.device.path

    def error(self, *ranges: Range, flush: bool = False) -> None:
        """Fail every read and write of the ranges; of the whole device when none is given."""
        self._put(ranges, flush, lambda _line: Error())

    def zero(self, *ranges: Range, flush: bool = False) -> None:
        """Read zeroes, and drop writes."""
        self._put(ranges, flush, lambda _line: Zero())

    def delay(self, read_ms: int, write_ms: int, *ranges: Range, flush: bool = False) -> None:
        """Delay reads, and writes with flushes, by that many milliseconds."""

        def slow(device: str, offset: int) -> Target:
            read = Delayed(device, offset, read_ms)
            return Delay(read, Delayed(device, offset, write_ms))

        self._put(ranges, flush, lambda line: slow(*_place(line)))

    def write_error(self, *ranges: Range, flush: bool = False) -> None:
        """Fail every write; reads are good."""
        self._flakey(ranges, flush, "error_writes")

    def drop_writes(self, *ranges: Range, flush: bool = False) -> None:
        """Drop writes that seem to succeed; reads give the old data."""
        self._flakey(ranges, flush, "drop_writes")

    def corrupt(
        self, *ranges: Range, byte: int = 0, value: int = 0xA5, flush: bool = False
    ) -> None:
        """Make byte number `byte` of every write `value`; reads give what was written so.

        Of writes, for 6.1 changes none that is read (measured). A write that is too short has no
        such byte, and stays as it is.
        """
        if not 0 <= byte < 1 << 20 or not 0 <= value <= 255:
            raise UsageError(f"byte {byte} cannot be made {value}: 0 to 1048575, and 0 to 255")
        self._flakey(ranges, flush, "corrupt_bio_byte", str(byte + 1), "w", str(value), "0")

    def restore(self, *ranges: Range, flush: bool = False) -> None:
        """Make the ranges good again; the whole device when none is given."""
        self._put(ranges, flush, lambda line: line.target)

    def _flakey(self, ranges: tuple[Range, ...], flush: bool, *words: str) -> None:
        def bad(device: str, offset: int) -> Target:
            return Flakey(device, offset, 0, ALWAYS, words)

        self._put(ranges, flush, lambda line: bad(*_place(line)))

    def _put(self, ranges: tuple[Range, ...], flush: bool, make: _Make) -> None:
        wanted = [_range(one, self.healthy.length) for one in ranges]
        table = self.table
        for start, end in wanted or [(0, self.healthy.length)]:
            table = _overlay(table, self.healthy, start, end, make)
        self.device.swap(table, flush=flush, lockfs=False)
        self.table = table


def _overlay(table: Table, healthy: Table, start: int, end: int, make: _Make) -> Table:
    """Return `table` with what `make` makes of the healthy lines from `start` to `end`."""
    lines = [*_cut(table, 0, start)]
    for line in _cut(healthy, start, end):
        lines.append(TableLine(line.start, line.length, make(line)))
    return Table((*lines, *_cut(table, end, table.length)))


def _cut(table: Table, start: int, end: int) -> Iterator[TableLine]:
    """Yield the parts of the lines of `table` that lie between `start` and `end`."""
    for line in table:
        low, high = max(line.start, start), min(line.end, end)
        if low < high:
            yield TableLine(low, high - low, _moved(line.target, low - line.start))


def _moved(target: Target, by: int) -> Target:
    """Return `target` as it maps from `by` sectors further on."""
    match target:
        case Linear(device, offset):
            return Linear(device, offset + by)
        case Flakey(device, offset, up, down, features):
            return Flakey(device, offset + by, up, down, features)
        case Delay(read, Delayed() as write, _):
            return Delay(_later(read, by), _later(write, by))
        case _:
            return target


def _later(delayed: Delayed, by: int) -> Delayed:
    return Delayed(delayed.device, delayed.offset + by, delayed.milliseconds)


def _place(line: TableLine) -> tuple[str, int]:
    assert isinstance(line.target, Linear)
    return line.target.device, line.target.offset


def _range(text: Range, length: int) -> tuple[int, int]:
    """Return start and end of `from:count` or (from, count). Raises UsageError."""
    if isinstance(text, str):
        start_text, colon, count_text = text.partition(":")
        if not (colon and start_text.isdecimal() and count_text.isdecimal()):
            raise UsageError(f"{text!r} is not a range: write from:count, in sectors")
        text = parse_count(start_text), parse_count(count_text)
    start, count = text
    if start < 0 or count < 1 or start + count > length:
        raise UsageError(f"{start}:{count} is not within the device's {length} sectors")
    return start, start + count
