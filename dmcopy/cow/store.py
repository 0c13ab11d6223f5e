"""Reading an exception store from a device or file: in pieces, so that no size is a problem.

    header → areas 0, 1, … until one is not full → the entries of each, a piece at a time

Nothing here writes, and nothing is believed: what is out of place raises MetadataError, which names
the byte. An area is as large as a chunk, up to 1 GiB, so it is read in pieces of 1 MiB.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from typing import Final, NamedTuple, Protocol

from dmcopy.block import BlockDevice
from dmcopy.cow.ahead import ahead
from dmcopy.errors import MetadataError
from dmcopy.io.region import Device
from dmcopy.ondisk.exception_store import (
    ENTRY_BYTES,
    HEADER_BYTES,
    AreaLayout,
    StoreError,
    StoreHeader,
    parse_area,
)
from dmcopy.units import SECTOR_SHIFT, SECTOR_SIZE

PIECE_BYTES: Final = 1 << 20


class CowDevice(Device, Protocol):
    """A device that can also be read by several threads; `dmcopy.block.BlockDevice` is one."""

    def pread(self, sector: int, count: int) -> bytes:
        """Return the content of `count` sectors from `sector`."""


class Entries(NamedTuple):
    """Exceptions that are next to each other in one area: `pairs` is old, new, old, new, …

    `first` is the first one's place in the area, `offset` its byte on the COW.
    """

    area: int
    first: int
    offset: int
    pairs: array[int]

    @property
    def olds(self) -> array[int]:
        """The chunks of the origin."""
        return self.pairs[0::2]

    @property
    def news(self) -> array[int]:
        """The chunks of the COW."""
        return self.pairs[1::2]


class _Place(NamedTuple):
    """A piece of an area: the number of its first entry in there, and its bytes on the COW."""

    area: int
    first: int
    offset: int
    length: int


class Store:
    """The exception store on `device`, whose header is `header`.

    `chunks` is the number of whole chunks on the device (what is behind them is never used), and
    `areas` of how many areas there is room for.
    """

    def __init__(self, device: CowDevice, header: StoreHeader) -> None:
        self.device = device
        self.header = header
        self.layout = AreaLayout(header.chunk_size)
        self.chunks = device.sectors // header.chunk_size
        self.areas = self.layout.areas_on(self.chunks)

    @property
    def path(self) -> str:
        """The device's name in messages."""
        return self.device.path

    def area_offset(self, area: int) -> int:
        """Return the byte on the COW at which an area begins."""
        return self.layout.area_location(area) * self.layout.chunk_bytes

    def entries(self) -> Iterator[Entries]:
        """Yield every exception, in store order. Raises MetadataError where the areas run out."""
        places = chain.from_iterable(map(self._places, range(self.areas)))
        with closing(ahead(self._read, places)) as found:
            for (area, first, offset, length), data in found:
                pairs = parse_area(data)
                if pairs:
                    yield Entries(area, first, offset, pairs)
                if len(pairs) * 8 < length:
                    return
        self._require(self.areas)

    def pieces(self, area: int) -> Iterator[tuple[int, bytes]]:
        """Yield an area's bytes in pieces, each with the number of its first entry.

        Raises MetadataError for an area that does not lie on the device.
        """
        self._require(area)
        for place, data in map(self._read, self._places(area)):
            yield place.first, data

    def _require(self, area: int) -> None:
        """Raise MetadataError for an area that does not lie on the device."""
        if area < self.areas:
            return
        before = f"; area {area - 1} is full, so it must be there" if area else ""
        raise StoreError(
            self.area_offset(area),
            f"area {area} would be here, past the end of the COW, which has {self.chunks} "
            f"whole chunks of {self.layout.chunk_bytes} bytes{before}",
            self.path,
        )

    def _places(self, area: int) -> Iterator[_Place]:
        offset, size = self.area_offset(area), self.layout.chunk_bytes
        length = min(PIECE_BYTES, size)  # of powers of two: all pieces are as long
        for start in range(0, size, length):
            yield _Place(area, start // ENTRY_BYTES, offset + start, length)

    def _read(self, place: _Place) -> tuple[_Place, bytes]:
        return place, read_bytes(self.device, place.offset, place.length)


def read_header(device: CowDevice) -> StoreHeader | None:
    """Return the header of the store on a device; None where a new store would be begun.

    Raises MetadataError for what is no store, naming the byte.
    """
    data = read_bytes(device, 0, min(HEADER_BYTES, device.sectors << SECTOR_SHIFT))
    try:
        return StoreHeader.parse(data)
    except StoreError as error:
        raise StoreError(error.offset, error.text, device.path) from None


def read_store(device: CowDevice) -> Store:
    """Return the store on a device. Raises MetadataError also where there is none yet."""
    header = read_header(device)
    if header is None:
        raise StoreError(
            0,
            "the magic is 0: there is no exception store yet, and the kernel would begin one here",
            device.path,
        )
    return Store(device, header)


def read_bytes(device: CowDevice, offset: int, length: int) -> bytes:
    """Return bytes from `offset` on, read in whole blocks of the device."""
    block = device.logical_block_size
    low, high = offset // block * block, -(-(offset + length) // block) * block
    data = device.pread(low // SECTOR_SIZE, (high - low) // SECTOR_SIZE)
    return data[offset - low : offset - low + length] if high - low != length else data


def open_cow(path: str | os.PathLike[str], *, write: bool = False) -> BlockDevice:
    """Open a COW, to read it unless `write`; claimed when it is to be written.

    A file is read past the page cache only where its chunks are whole blocks for that.
    Raises UsageError, BusyError, DeviceError.
    """
    device = BlockDevice.open(path, write=write)
    try:
        header = None if device.is_block else read_header(device)
    except MetadataError:
        return device
    except BaseException:
        device.close()
        raise
    if header is None or not header.chunk_size * SECTOR_SIZE % device.logical_block_size:
        return device
    device.close()
    return BlockDevice.open(path, write=write, direct=False)
