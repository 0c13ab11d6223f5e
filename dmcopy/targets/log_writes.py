"""log-writes: every write is also logged on another device (drivers/md/dm-log-writes.c).

For the format see `dmcopy.ondisk.write_log`. A log shows what a crash could have left: writes and
discards enter it when a flush completes that was sent after them, FUA writes when they complete.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from typing import ClassVar

from dmcopy import table as lines
from dmcopy.errors import ClosedError
from dmcopy.io import whole
from dmcopy.io.region import IoRegion
from dmcopy.io.request import Io, Memory, Op
from dmcopy.ondisk.write_log import END, LogEntry, LogFlag, Super
from dmcopy.table import TableLine
from dmcopy.targets.base import REMAPPED, Bio, Host, Map, Target, TargetError, register
from dmcopy.units import PAGE_SIZE, SECTOR_SHIFT


class _Block:
    """An entry with its data, and for a flush what it made durable."""

    __slots__ = ("data", "entry", "flushed")

    def __init__(self, entry: LogEntry, data: bytes = b"") -> None:
        self.entry = entry
        self.data = data
        self.flushed: list[_Block] = []


@register
class LogWrites(Target):
    """`log-writes <device> <log_device>`; the message `mark <text>` adds a mark.

    Sectors are those of the mapped device, also below, whatever line of the table it is. A log
    that is full or fails is given up, which only the status tells; the data is still written.

    Two rules differ from the kernel's: entries are written one after the other, where the kernel
    waits only for the header, and a table that never ran leaves the log alone, where the kernel
    writes its end.
    """

    value: lines.LogWrites
    name: ClassVar[str] = "log-writes"
    version: ClassVar = (1, 1, 0)
    flush_bios = 1
    discard_bios = 1
    wants_end_io = True

    def __init__(self, line: TableLine, host: Host) -> None:
        super().__init__(line, host)
        self._device = host.open(self.value.device)
        self._log = host.open(self.value.log_device)
        host.use(self._device, 0, self.length)
        self._block_size = self._device.logical_block_size
        self._block_sectors = self._block_size >> SECTOR_SHIFT
        self._next = self._block_sectors
        self._entries = 0
        self._enabled = True
        self._in_use = False
        self._unflushed: list[_Block] = []
        self._queue: deque[_Block] = deque()
        self._writing = False
        self._memory = Memory(1)

    def map(self, bio: Bio) -> Map:
        """Keep what is written, and let the bio pass."""
        bio.device = self._device
        if self._enabled and bio.op != Op.READ:
            bio.data = self._keep(bio)
        return REMAPPED

    def end_io(self, bio: Bio) -> bool:
        """Log the bio, or let it wait for a flush. Whether it failed makes no difference."""
        block: _Block | None = bio.data
        if block is None:
            return True
        if bio.op == Op.DISCARD and bio.error == errno.EOPNOTSUPP:
            bio.error = 0  # a discard is logged even where the device has none
        if bio.op == Op.FLUSH:
            self._queue.extend(block.flushed)
            self._queue.append(block)
            self._write_next()
        elif bio.fua:
            self._queue.append(block)
            self._write_next()
        else:
            self._unflushed.append(block)
        return True

    def status(self) -> str:
        """Return the number of entries, the last sector in use, and whether logging ended."""
        text = f"{self._entries} {self._next - 1}"
        return text if self._enabled else f"{text} logging_disabled"

    def message(self, words: tuple[str, ...]) -> str:
        """Take `mark <text>`, the only message: an entry with that text."""
        if len(words) != 2:
            raise TargetError(
                f"Invalid log-writes message arguments, expect 2 arguments, got {len(words)}"
            )
        if words[0].lower() != "mark":
            raise TargetError(f"Unrecognised log writes target message received: {words[0]}")
        self._in_use = True
        self._mark(os.fsencode(words[1]))
        return ""

    def resume(self) -> None:
        """Own the log from now on: `destroy` writes its end."""
        self._in_use = True

    def destroy(self) -> None:
        """Log the writes that no flush followed, and the mark of the end."""
        if self._in_use:
            self._queue.extend(self._unflushed)
            self._mark(END)
            with contextlib.suppress(ClosedError):
                self.host.reactor.run_until(
                    lambda: not self._writing, whole.TIMEOUT_SECONDS, f"the log on {self._log.path}"
                )
        self._memory.close()

    def failed(self) -> None:
        """Give the log up."""
        self._enabled = False

    def _keep(self, bio: Bio) -> _Block:
        sector, count = bio.sector // self._block_sectors, bio.count // self._block_sectors
        if bio.op == Op.FLUSH:
            block = _Block(LogEntry(0, 0, LogFlag.FLUSH))
            block.flushed, self._unflushed = self._unflushed, []
            return block
        if bio.op == Op.DISCARD:
            return _Block(LogEntry(sector, count, LogFlag.DISCARD))
        assert bio.memory is not None
        flags = LogFlag.FUA if bio.fua else LogFlag(0)
        return _Block(LogEntry(sector, count, flags), bio.memory.read(bio.extents))

    def _mark(self, text: bytes) -> None:
        self._queue.append(_Block(LogEntry.mark(text, self._block_size)))
        self._write_next()

    def _write_next(self) -> None:
        """Write the next entry, unless one is being written, or the log was given up."""
        while self._queue and not self._writing:
            block = self._queue.popleft()
            if not self._enabled:
                continue
            data = block.entry.build(self._block_size) + block.data
            start = self._next
            self._next += len(data) >> SECTOR_SHIFT
            if self._next >= self._log.sectors:
                self._enabled = False
                continue
            self._entries += 1
            self._writing = True
            self._write(start, data, block.entry.flags & (LogFlag.FUA | LogFlag.MARK))

    def _write(self, sector: int, data: bytes, super_follows: int = 0) -> None:
        if len(data) > self._memory.size_bytes:
            self._memory.close()
            self._memory = Memory(-(-len(data) // PAGE_SIZE))
        self._memory.view[: len(data)] = data

        def written(io: Io) -> None:
            if io.error:
                self._enabled = False
            if super_follows and not io.error:
                self._write(0, Super(self._entries, self._block_size).build())
                return
            self._writing = False
            self._write_next()

        region = IoRegion(self._log, sector, len(data) >> SECTOR_SHIFT)
        self.host.reactor.submit(Io(Op.WRITE, region, self._memory, [(0, len(data))], written))
