"""The log of log-writes: every write, in the order of its durability. Pure parsing and building.

    block 0   u64 magic 0x6a736677736872, u64 version 1, u64 nr_entries, u32 block size in bytes
    block 1   an entry: u64 sector, u64 nr_sectors, u64 flags, u64 data_len, then a mark's text
              and behind it the nr_sectors blocks that were written (none for a discard)
    ...       the next entry

All numbers are little-endian and count blocks, which the kernel calls sectors: the logical blocks
of the device that is logged. nr_entries is rewritten only with FUA writes and marks.

Source: drivers/md/dm-log-writes.c, 6.1 and 6.12; compared with the logs of both kernels.
"""

from __future__ import annotations

import enum
import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from dmcopy.errors import MetadataError
from dmcopy.units import SECTOR_SIZE

MAGIC: Final = 0x6A736677736872
VERSION: Final = 1
END: Final = b"dm-log-writes-end"
"""The text of the mark that ends the log of a device that was removed."""
_SUPER: Final = struct.Struct("<QQQI")
_ENTRY: Final = struct.Struct("<QQQQ")

Buffer = bytes | bytearray | memoryview | mmap.mmap


class LogFlag(enum.IntFlag):
    """What kind of entry it is (LOG_*_FLAG)."""

    FLUSH = 1
    FUA = 2
    DISCARD = 4
    MARK = 8
    METADATA = 16


class Super(NamedTuple):
    """Block 0. `block_size` in bytes."""

    nr_entries: int
    block_size: int

    @classmethod
    def parse(cls, data: Buffer, path: str = "the log") -> Self:
        """Return what `data` begins with. Raises MetadataError, which names the byte."""
        if len(data) < _SUPER.size:
            raise MetadataError(f"{path}: byte {len(data)}: the log ends before its header does")
        magic, version, nr_entries, block_size = _SUPER.unpack_from(data)
        if magic != MAGIC:
            raise MetadataError(
                f"{path}: byte 0: the magic number is {magic:#x}, not {MAGIC:#x}: this is no log "
                "of log-writes, or one without any FUA write or mark yet"
            )
        if version != VERSION:
            raise MetadataError(f"{path}: byte 8: version {version} is unknown: {VERSION} is known")
        if block_size < SECTOR_SIZE or block_size & (block_size - 1):
            raise MetadataError(f"{path}: byte 24: {block_size} bytes are no size of a block")
        return cls(nr_entries, block_size)

    def build(self) -> bytes:
        """Return the whole block."""
        head = _SUPER.pack(MAGIC, VERSION, self.nr_entries, self.block_size)
        return head.ljust(self.block_size, b"\0")


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry. `sector` and `nr_sectors` count blocks; `text` is a mark's."""

    sector: int
    nr_sectors: int
    flags: LogFlag
    text: bytes = b""

    @classmethod
    def mark(cls, text: bytes, block_size: int) -> Self:
        """Return a mark, its text cut to what a block holds, as the kernel does."""
        return cls(0, 0, LogFlag.MARK, text[: block_size - _ENTRY.size - 1])

    @property
    def data_blocks(self) -> int:
        """How many blocks of data follow the entry's own."""
        return 0 if self.flags & LogFlag.DISCARD else self.nr_sectors

    def build(self, block_size: int) -> bytes:
        """Return the entry's own block."""
        head = _ENTRY.pack(self.sector, self.nr_sectors, self.flags, len(self.text))
        return (head + self.text).ljust(block_size, b"\0")


Read = Callable[[int, int], Buffer]
"""Called with a byte of a log and a length, returns what is there; less where the log ends."""


def parse_entries(data: Buffer, path: str = "the log") -> Iterator[tuple[LogEntry, int]]:
    """Yield the entries of the log that `data` begins with, each with the byte of its data.

    As many as block 0 counts: what lies behind may be of an older log. Raises MetadataError, which
    names the byte, for what is no log, and where it ends too early.
    """
    return read_entries(lambda at, count: data[at : at + count], len(data), path)


def read_entries(read: Read, size: int, path: str = "the log") -> Iterator[tuple[LogEntry, int]]:
    """Yield the same of a log of `size` bytes, of which only the entries' own blocks are read."""
    head = Super.parse(read(0, _SUPER.size), path)
    block = head.block_size
    start = block
    for number in range(head.nr_entries):
        if start + block > size:
            raise MetadataError(
                f"{path}: byte {start}: entry {number} of {head.nr_entries} is behind the end"
            )
        entry = _entry(read(start, block), start, number, path)
        start += block
        end = start + entry.data_blocks * block
        if end > size:
            raise MetadataError(
                f"{path}: byte {start}: the data of entry {number} ends behind the log"
            )
        yield entry, start
        start = end


def _entry(block: Buffer, start: int, number: int, path: str) -> LogEntry:
    """Return the entry of a block, which is at byte `start`."""
    sector, nr_sectors, flags, length = _ENTRY.unpack_from(block)
    if flags & ~sum(LogFlag):
        raise MetadataError(f"{path}: byte {start + 16}: flags {flags:#x} are unknown")
    if not flags and not nr_sectors:  # a write that never was: its block did not reach the disk
        raise MetadataError(
            f"{path}: byte {start}: entry {number} is a write of nothing, as where the log was "
            "not written to its end"
        )
    if length > len(block) - _ENTRY.size:
        raise MetadataError(
            f"{path}: byte {start + 24}: a text of {length} bytes does not fit into a block"
        )
    text = bytes(block[_ENTRY.size : _ENTRY.size + length])
    return LogEntry(sector, nr_sectors, LogFlag(flags), text)
