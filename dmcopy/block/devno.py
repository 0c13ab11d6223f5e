"""Device numbers: of a path, as tables and /proc print them (8:16), and as a path again."""

from __future__ import annotations

import os
import re
import stat
from typing import Final, TypeAlias

DevNo: TypeAlias = tuple[int, int]
"""A device number: major, minor."""

_NUMBER: Final = re.compile(r"\d+:\d+")


def parse_devno(text: str, base: int = 10) -> DevNo:
    """Return the numbers of `major:minor`. Raises ValueError."""
    major, minor = text.split(":")
    return int(major, base), int(minor, base)


def devno_text(number: int | DevNo) -> str:
    """Return a number, or what stat has in st_rdev and st_dev, as `major:minor`."""
    major, minor = split_devno(number) if isinstance(number, int) else number
    return f"{major}:{minor}"


def split_devno(number: int) -> DevNo:
    """Return the major and the minor of a number as stat has it."""
    return os.major(number), os.minor(number)


def block_devno(status: os.stat_result) -> DevNo | None:
    """Return the number of the block device that was looked at, None for anything else."""
    return split_devno(status.st_rdev) if stat.S_ISBLK(status.st_mode) else None


def is_devno(device: str) -> bool:
    """Return whether a table's word for a device is its number."""
    return _NUMBER.fullmatch(device) is not None


def openable(device: str) -> str:
    """Return a path for a table's device, which may be written as its number.

    Udev's link, or without udev the kernel's name for it: that is its node in devtmpfs.
    """
    if not is_devno(device):
        return device
    path = f"/dev/block/{device}"
    if not os.path.exists(path):
        try:
            name = os.path.basename(os.readlink(f"/sys/dev/block/{device}"))
        except OSError:
            return path
        return f"/dev/{name.replace('!', '/')}"
    return path
