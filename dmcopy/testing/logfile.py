"""A log of writes on the device or file that it is on, and which of its entries are meant.

The kernel's log-writes, QEMU's blklogwrites, the target of the userspace engine and `dmcopy disk
serve --log` all write the format of `dmcopy.ondisk.write_log`. They differ in the order of entries:
QEMU has writes in the order in which they were sent, the others in the order of their durability.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from dmcopy.block import BlockDevice
from dmcopy.closing import Closing
from dmcopy.errors import DeviceError, UsageError
from dmcopy.ondisk.write_log import END, LogEntry, LogFlag, Super, read_entries
from dmcopy.units import SECTOR_SHIFT


class Logged(NamedTuple):
    """Entry `number` of a log, whose data is at byte `at` of it."""

    number: int
    entry: LogEntry
    at: int


class LogFile(Closing):
    """A log, opened to be read. Raises MetadataError for what is none, UsageError, DeviceError.

    Attributes:
        block_size: the unit of its entries, in bytes.
        nr_entries: how many it counts. More may be behind them: the kernel writes the number only
            with FUA writes and marks.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._device = BlockDevice.open(path, direct=False)
        try:
            if self._device.is_block:  # the kernel writes a log past the page cache
                os.posix_fadvise(self._device.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            head = Super.parse(self._read(0, 64), path)
        except BaseException:
            self.close()
            raise
        self.block_size = head.block_size
        self.nr_entries = head.nr_entries

    def close(self) -> None:
        self._device.close()

    @property
    def block_sectors(self) -> int:
        """The unit of its entries, in sectors."""
        return self.block_size >> SECTOR_SHIFT

    def entries(self) -> Iterator[Logged]:
        """Yield the entries in order. Raises MetadataError naming the byte, DeviceError."""
        size = self._device.size_bytes
        for number, (entry, at) in enumerate(read_entries(self._read, size, self.path)):
            yield Logged(number, entry, at)

    def data(self, logged: Logged) -> bytes:
        """Return what an entry wrote: zeroes for a discard, nothing for a flush or a mark."""
        length = logged.entry.nr_sectors * self.block_size
        if logged.entry.flags & LogFlag.DISCARD:
            return bytes(length)
        return self._read(logged.at, length)

    def _read(self, at: int, count: int) -> bytes:
        parts = []
        while count:
            try:
                part = os.pread(self._device.fileno(), count, at)
            except OSError as error:
                raise DeviceError(self.path, f"read byte {at}", error.errno or 0) from error
            if not part:
                break
            parts.append(part)
            at, count = at + len(part), count - len(part)
        return b"".join(parts)


@dataclass(frozen=True)
class Selection:
    """From which entry on, and up to which: as the options of fstests' replay-log say it.

    `start_entry`: the number of the first, or `start_mark`: the text of a mark, to begin behind it.
    The last is the first for which one of the others holds: `limit` entries, a flush, a FUA write,
    the mark with the text `end_mark`; by default the last of the log.
    """

    start_entry: int = 0
    start_mark: str | None = None
    limit: int | None = None
    next_flush: bool = False
    next_fua: bool = False
    end_mark: str | None = None

    def of(self, log: LogFile) -> list[Logged]:
        """Return the entries of a log that are meant.

        Raises UsageError where the log has not what the selection names, MetadataError.
        """
        begun = self.start_mark is None
        start_mark, end_mark = _text(self.start_mark), _text(self.end_mark)
        found: list[Logged] = []
        if not 0 <= self.start_entry <= log.nr_entries:
            raise UsageError(f"{log.path} has {log.nr_entries} entries: none is {self.start_entry}")
        for logged in log.entries():
            if logged.number < self.start_entry:
                continue
            if not begun:
                begun = is_mark(logged.entry, start_mark)
                continue
            found.append(logged)
            if len(found) == self.limit or self._ends_with(logged.entry, end_mark):
                return found
        if not begun:
            raise UsageError(f"{log.path} has no mark {self.start_mark!r}")
        self._check_end(log)
        return found

    def _ends_with(self, entry: LogEntry, end_mark: bytes | None) -> bool:
        return bool(
            (self.next_flush and entry.flags & LogFlag.FLUSH)
            or (self.next_fua and entry.flags & LogFlag.FUA)
            or (end_mark is not None and is_mark(entry, end_mark))
        )

    def _check_end(self, log: LogFile) -> None:
        wanted = {
            "flush": self.next_flush,
            "FUA write": self.next_fua,
            f"mark {self.end_mark!r}": self.end_mark is not None,
        }
        kinds = [kind for kind, is_wanted in wanted.items() if is_wanted]
        if kinds and self.limit is None:
            where = f"behind mark {self.start_mark!r}" if self.start_mark else ""
            where = where or f"from entry {self.start_entry} on"
            raise UsageError(f"{log.path} has no {' or '.join(kinds)} {where}")


def is_mark(entry: LogEntry, text: bytes | None) -> bool:
    """Return whether an entry is the mark with that text; None: any mark."""
    return bool(entry.flags & LogFlag.MARK) and (text is None or entry.text == text)


def is_end(entry: LogEntry) -> bool:
    """Return whether an entry is what a log ends with whose device was removed."""
    return is_mark(entry, END)


def _text(mark: str | None) -> bytes | None:
    return None if mark is None else os.fsencode(mark)
