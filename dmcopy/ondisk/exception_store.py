"""The persistent exception store of dm-snapshot: the header, the areas, and where chunks are.

A COW device is an array of chunks: the header, then, again and again, one chunk of metadata (an
area) and the data chunks that its entries speak of. With 4 KiB chunks, where an area has E = 256
entries:

    chunk    0       1        2 … 257         258      259 … 514       515
             header  area 0   data, 256 of    area 1   data, 256 of    area 2   …

All is little-endian. From drivers/md/dm-snap-persistent.c, measured on 6.1 and 6.12. This module
parses and builds; it does no I/O.
"""

from __future__ import annotations

import struct
import sys
from array import array
from typing import ClassVar, Final, NamedTuple, Self

from dmcopy.errors import MetadataError
from dmcopy.units import SECTOR_SHIFT

MAGIC: Final = 0x70416E53
"""The four bytes `SnAp`."""
VERSION: Final = 1
"""SNAPSHOT_DISK_VERSION; the kernel refuses any other."""
HEADER_BYTES: Final = 16
ENTRY_BYTES: Final = 16
MAX_CHUNK_SIZE: Final = 2097152
"""Sectors: the largest power of two whose bytes fit in an int, 1 GiB."""

_HEADER: Final = struct.Struct("<4I")
ENTRY: Final = struct.Struct("<2Q")
_SWAPPED: Final = sys.byteorder == "big"


class StoreError(MetadataError):
    """A store is wrong at byte `offset`; `text` says how, without the byte."""

    def __init__(self, offset: int, text: str, path: str = "") -> None:
        self.offset = offset
        self.text = text
        super().__init__(f"{path}: byte {offset}: {text}" if path else f"byte {offset}: {text}")


class StoreHeader(NamedTuple):
    """What is at the start of chunk 0; the rest of that chunk is zeroes. `chunk_size` in sectors.

    `valid`: false once the snapshot was invalidated, which is for ever. The header says nothing
    about the origin, and has no checksum.
    """

    valid: bool
    version: int
    chunk_size: int

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> Self | None:
        """Parse the first 16 bytes of a COW; None when the magic is 0: a brand-new store.

        Raises StoreError, a MetadataError, naming the byte and the value of what is wrong.
        """
        if len(data) < HEADER_BYTES:
            raise StoreError(
                len(data), f"the header is cut off, its {HEADER_BYTES} bytes are not all there"
            )
        magic, valid, version, chunk_size = _HEADER.unpack_from(data)
        if magic == 0:
            return None
        if magic != MAGIC:
            raise StoreError(
                0,
                f"the magic is {magic:#010x} and not {MAGIC:#010x}: this is no exception store; to "
                f"begin a new one here, zero the first sector",
            )
        if version != VERSION:
            raise StoreError(8, f"the version is {version}, and only {VERSION} is known")
        if not is_chunk_size(chunk_size):
            raise StoreError(
                12,
                f"the chunk size is {chunk_size} sectors, which is not a power of two from 1 to "
                f"{MAX_CHUNK_SIZE}",
            )
        return cls(valid != 0, version, chunk_size)

    def build(self) -> bytes:
        """Return the 16 bytes; the kernel writes a whole chunk, zeroes behind them."""
        return _HEADER.pack(MAGIC, int(self.valid), self.version, self.chunk_size)


class AreaLayout:
    """Where areas and data chunks are in a store with chunks of `chunk_size` sectors.

    `chunk_bytes`: the same in bytes. `per_area`: the entries of one area, and the data chunks
    behind it. `stride`: from one area to the next, in chunks.
    """

    __slots__ = ("chunk_bytes", "chunk_size", "per_area", "stride")

    first_data: ClassVar[int] = 2

    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self.chunk_bytes = chunk_size << SECTOR_SHIFT
        self.per_area = self.chunk_bytes // ENTRY_BYTES
        self.stride = self.per_area + 1

    def area_location(self, area: int) -> int:
        """Return the chunk that holds area number `area`."""
        return 1 + area * self.stride

    def is_metadata(self, chunk: int) -> bool:
        """Return whether `chunk` is the header or an area, and so never data."""
        return chunk == 0 or chunk % self.stride == 1

    def after(self, chunk: int) -> int:
        """Return the next data chunk after `chunk`: the order in which chunks are given out."""
        chunk += 1
        return chunk + 1 if chunk % self.stride == 1 else chunk

    def areas_on(self, cow_chunks: int) -> int:
        """Return how many areas lie on a COW of `cow_chunks` whole chunks."""
        return (cow_chunks - 2) // self.stride + 1 if cow_chunks > 1 else 0


def is_chunk_size(sectors: int) -> bool:
    """Return whether a store can have chunks of this size: a power of two, up to 1 GiB."""
    return 0 < sectors <= MAX_CHUNK_SIZE and sectors & (sectors - 1) == 0


def parse_area(data: bytes | bytearray | memoryview) -> array[int]:
    """Return an area's exceptions as old, new, old, new, … up to its end.

    The end is the first entry whose new chunk is 0; whatever is behind it does not count. An area
    without one is full, and the next area follows. Nothing is checked, as in the kernel.
    """
    pairs = words(data)
    try:
        end = pairs[1::2].index(0)
    except ValueError:
        return pairs
    del pairs[2 * end :]
    return pairs


def words(data: bytes | bytearray | memoryview) -> array[int]:
    """Return whole entries as 64-bit numbers, stale ones and end markers included."""
    found = array("Q")
    found.frombytes(memoryview(data)[: len(data) // ENTRY_BYTES * ENTRY_BYTES])
    if _SWAPPED:
        found.byteswap()
    return found


def build_words(numbers: array[int]) -> bytes:
    """Return 64-bit numbers as they are in an area: `words` of it are the same again."""
    if _SWAPPED:
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


def build_entry(old: int, new: int) -> bytes:
    """Return the 16 bytes that say: chunk `old` of the origin is in chunk `new` of the COW."""
    return ENTRY.pack(old, new)
