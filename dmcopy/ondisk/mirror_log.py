"""The disk log of dm-mirror: which regions its legs agree on. Pure parsing and building.

    byte 0     u32 magic 0x4d695272     all numbers are little-endian
    byte 4     u32 version, 2           1 is the same on little-endian hosts, and rewritten as 2
    byte 8     u64 nr_regions
    byte 16    not interpreted, rewritten as it was read
    byte 1024  the bit set: 1 is clean (in sync, nothing being written), 0 is dirty

Source: drivers/md/dm-log.c (log_header_disk, create_log_context, disk_resume), 6.1 and 6.12;
compared with the logs of both kernels.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from dmcopy.errors import MetadataError
from dmcopy.ondisk.bitset import Bitset, bitset_bytes

MAGIC: Final = 0x4D695272
VERSION: Final = 2
OFFSET: Final = 1024
"""Bytes before the bit set."""
MAX_REGIONS: Final = (1 << 32) - 1
_HEADER: Final = struct.Struct("<IIQ")


class LogHeader(NamedTuple):
    """The first 16 bytes of a log: what it is, and how many regions it has."""

    magic: int
    version: int
    nr_regions: int

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> Self:
        """Return what the first 16 bytes of `data` say."""
        return cls(*_HEADER.unpack_from(data))

    def pack(self) -> bytes:
        """Return the 16 bytes."""
        return _HEADER.pack(*self)


def log_bytes(nr_regions: int, block_size: int = 512) -> int:
    """Return how long the log is that is read and written, in bytes: whole blocks of its device."""
    return -(-(OFFSET + bitset_bytes(nr_regions)) // block_size) * block_size


def region_count(sectors: int, region_size: int) -> int:
    """Return how many regions of `region_size` a mirror of `sectors` has; the last may be short."""
    return -(-sectors // region_size)


@dataclass
class MirrorLog:
    """A log: its version as it stands on the disk, and a bit for each region, 1 when clean.

    It is written back as version 2 if it was 1; one that is unknown stays, as in the kernel.
    """

    clean: Bitset
    version: int = VERSION

    @property
    def nr_regions(self) -> int:
        """How many regions the log is for."""
        return self.clean.size

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview, path: str = "the log") -> Self:
        """Return the log that `data` begins with. `path` names it in errors.

        Raises MetadataError, which names the byte, for a log that no kernel would continue.
        """
        header = parse_header(data, path)
        needs = OFFSET + -(-header.nr_regions // 8)
        if len(data) < needs:
            raise MetadataError(
                f"{path}: byte {len(data)}: the log ends here, but its {header.nr_regions} regions "
                f"(byte 8) need {needs} bytes: it was cut, or the number is wrong"
            )
        return cls(Bitset(header.nr_regions, data[OFFSET:needs]), header.version)

    def build(self, before: bytes | bytearray | memoryview = b"", block_size: int = 512) -> bytes:
        """Return the bytes to write; what `before` has elsewhere stays as it is."""
        data = bytearray(before[: log_bytes(self.nr_regions, block_size)])
        data.extend(bytes(log_bytes(self.nr_regions, block_size) - len(data)))
        version = VERSION if self.version == 1 else self.version
        header = LogHeader(MAGIC, version, self.nr_regions).pack()
        data[: len(header)] = header
        data[OFFSET : OFFSET + len(self.clean.data)] = self.clean.data
        return bytes(data)

    def dirty(self) -> Iterator[int]:
        """Yield the numbers of the dirty regions, in ascending order."""
        return self.clean.zeroes()


def parse_header(data: bytes | bytearray | memoryview, path: str = "the log") -> LogHeader:
    """Return the header of a log, of which at least 16 bytes are there. Raises MetadataError."""
    if len(data) < _HEADER.size:
        raise MetadataError(
            f"{path}: byte {len(data)}: the log ends before its header does, which is "
            f"{_HEADER.size} bytes long"
        )
    header = LogHeader.unpack(bytes(data[: _HEADER.size]))
    if header.magic != MAGIC:
        raise MetadataError(
            f"{path}: byte 0: the magic number is {header.magic:#010x}, not {MAGIC:#010x}: this is "
            "no mirror log; a mirror that is given it begins a new one and copies everything"
        )
    if header.version not in (1, VERSION):
        raise MetadataError(
            f"{path}: byte 4: version {header.version} is unknown: 1 and {VERSION} are known; "
            "a mirror that is given this log takes it as failed"
        )
    if header.nr_regions > MAX_REGIONS:
        raise MetadataError(
            f"{path}: byte 8: {header.nr_regions} regions are more than a mirror can have, "
            f"{MAX_REGIONS}"
        )
    return header


def findings(data: bytes | bytearray | memoryview, path: str = "the log") -> list[str]:
    """Return what a log has that no kernel writes, one sentence each; empty for a sound one.

    Raises MetadataError when it is not a log at all, or cut.
    """
    log = MirrorLog.parse(data, path)
    found = []
    if not log.nr_regions:
        found.append(f"{path}: byte 8: the log is for no region at all")
    end = OFFSET + bitset_bytes(log.nr_regions)
    raw = bytes(data[OFFSET:end])
    for place, (is_there, expected) in enumerate(zip(raw, log.clean.data, strict=False)):
        if is_there != expected:
            found.append(
                f"{path}: byte {OFFSET + place}: bits are set behind the last region, "
                f"{log.nr_regions - 1}"
            )
            break
    return found


class Resumed(NamedTuple):
    """What a mirror makes of its log when it is resumed.

    `grown`: there are regions that the log did not have. `failed`: the log counts as failed.
    """

    log: MirrorLog
    grown: bool
    failed: bool


def resume(data: bytes | bytearray | None, nr_regions: int, sync: str | None) -> Resumed:
    """Return the log of a mirror of `nr_regions` that resumes on `data` (None: unreadable).

    `sync` is the table's word: with 'sync' or 'nosync', or where there is no log yet, a new one
    begins. Regions that the log does not have are dirty, or with 'nosync' clean; surplus ones are
    forgotten (disk_resume in dm-log.c).
    """
    new = sync == "nosync"
    version, there, failed = VERSION, 0, data is None
    if data is not None and sync is None:
        header = LogHeader.unpack(data)
        if header.magic == MAGIC and header.version in (1, VERSION):
            there = min(header.nr_regions, nr_regions)
        elif header.magic == MAGIC:
            version, failed = header.version, True
    bits = Bitset(there, memoryview(data or b"")[OFFSET:])
    log = MirrorLog(bits.resized(nr_regions, new), version)
    return Resumed(log, there < nr_regions, failed)
