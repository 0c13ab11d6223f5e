"""Sectors and sizes. Every API counts in sectors of 512 bytes, whatever a device's blocks are."""

from __future__ import annotations

import re
from typing import Final

from dmcopy.errors import UsageError

SECTOR_SHIFT: Final = 9
SECTOR_SIZE: Final = 1 << SECTOR_SHIFT
PAGE_SIZE: Final = 4096
PAGE_SECTORS: Final = PAGE_SIZE >> SECTOR_SHIFT

MAX_COUNT: Final = (1 << 63) - 1
"""The largest offset that a file or device can have (loff_t), in bytes: no number goes beyond."""

_UNITS: Final = {
    "b": 1,
    "s": SECTOR_SIZE,
    "k": 1 << 10,
    "m": 1 << 20,
    "g": 1 << 30,
    "t": 1 << 40,
    "p": 1 << 50,
}
_SIZE = re.compile(r"(\d+)(?:([bskmgtp])|([kmgtp])i?b)?", re.IGNORECASE | re.ASCII)
_LONGEST_SHOWN: Final = 40


def quoted(text: str) -> str:
    """Return what a user typed for a sentence: in quotes, and cut where it is very long."""
    return repr(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…")


def parse_count(text: str) -> int:
    """Return the decimal number that `text` is. Raises UsageError, also beyond MAX_COUNT."""
    digits = text.strip().removeprefix("-")
    if not (digits.isascii() and digits.isdigit()):
        raise UsageError(f"{quoted(text)} is not a whole number")
    if len(digits.lstrip("0")) > len(str(MAX_COUNT)) or int(digits) > MAX_COUNT:
        raise UsageError(f"{quoted(text)} is too large: numbers end at {MAX_COUNT}")
    return int(text)


def parse_bytes(text: str, *, default: str = "s") -> int:
    """Return the number of bytes that `text` means.

    A number with a suffix: s (sectors of 512 bytes), B (bytes), K, M, G, T, P (powers of 1024; KiB
    and KB mean the same). Without a suffix it counts in `default`. Raises UsageError.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"{quoted(text)} is not a size: give a number, or one with s, B, K, M, G or T"
        )
    unit = (match[2] or match[3] or default).lower()
    size = parse_count(match[1]) * _UNITS[unit]
    if size > MAX_COUNT:
        raise UsageError(f"{quoted(text)} is too large: sizes end at {MAX_COUNT} bytes (8 EiB)")
    return size


def parse_sectors(text: str) -> int:
    """Return the number of sectors that `text` means; a bare number is in sectors.

    Raises UsageError for what is no size and for a byte count that is not whole sectors.
    """
    size = parse_bytes(text)
    if size % SECTOR_SIZE:
        raise UsageError(f"{text} is {size} bytes, which is not a whole number of 512-byte sectors")
    return size >> SECTOR_SHIFT


def format_bytes(size: int) -> str:
    """Return `size` bytes for people, in powers of 1024: 512 B, 1.5 MiB, 8 GiB."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} PiB"


def format_sectors(count: int) -> str:
    """Return a sector count for people: `2048s (1 MiB)`."""
    return f"{count}s ({format_bytes(count << SECTOR_SHIFT)})"
