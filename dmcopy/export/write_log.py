"""A file in the format of dm-log-writes, written along with what a disk makes durable."""

from __future__ import annotations

import os

from dmcopy.errors import DeviceError
from dmcopy.ondisk.write_log import END, LogEntry, LogFlag, Super


class WriteLog:
    """A new file at `path`, for a disk with blocks of `block_size` bytes; `close` ends it.

    What is behind the header is written before the header counts it, so that a log is whole up to
    its last flush, FUA write or mark when its writer is killed. Raises DeviceError where there is
    a file already: a log is never written over. A log that cannot be written raises it, too.
    """

    def __init__(self, path: str, block_size: int) -> None:
        self._path = path
        self._block_size = block_size
        self._entries = 0
        self._next = block_size
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o666)
        except OSError as error:
            raise DeviceError(path, "make a log of writes", error.errno or 0) from None
        self._count()

    def write(self, block: int, data: bytes, *, fua: bool = False) -> None:
        count = len(data) // self._block_size
        self._add(LogEntry(block, count, LogFlag.FUA if fua else LogFlag(0)), data)
        if fua:
            self._count()

    def discard(self, block: int, count: int) -> None:
        """Note a discard, after which blocks are zeroes."""
        self._add(LogEntry(block, count, LogFlag.DISCARD))

    def flush(self) -> None:
        """Note a flush: all that was noted before is durable."""
        self._add(LogEntry(0, 0, LogFlag.FLUSH))
        self._count()

    def mark(self, text: str) -> None:
        """Note a point in time by a text."""
        self._add(LogEntry.mark(os.fsencode(text), self._block_size))
        self._count()

    def close(self) -> None:
        """End the log, with the mark that ends a kernel's."""
        self._add(LogEntry.mark(END, self._block_size))
        self._count()
        os.close(self._fd)

    def _add(self, entry: LogEntry, data: bytes = b"") -> None:
        text = entry.build(self._block_size) + data
        self._put(text, self._next)
        self._next += len(text)
        self._entries += 1

    def _count(self) -> None:
        self._put(Super(self._entries, self._block_size).build(), 0)

    def _put(self, data: bytes, at: int) -> None:
        view = memoryview(data)
        while view:
            try:
                done = os.pwrite(self._fd, view, at)
            except OSError as error:
                raise DeviceError(self._path, "write to it", error.errno or 0) from None
            view, at = view[done:], at + done
