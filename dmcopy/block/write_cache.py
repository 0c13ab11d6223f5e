"""Whether a disk has a volatile write cache, by what the kernel says of it now."""

from __future__ import annotations

import os

from dmcopy.block.devno import devno_text
from dmcopy.block.sysfs import LIVE, Roots


class WriteCache:
    """The write cache of the disk that block device `number` (st_rdev) is, or is a part of.

    `queue/write_cache` in sysfs is what the block layer goes by when it drops a flush
    (block/blk-sysfs.c). It may change at any moment: a driver asks its disk anew, a mapped device
    gets a table over other disks, or an administrator writes there. So it is read each
    time, which takes a microsecond.
    """

    def __init__(self, number: int, roots: Roots = LIVE) -> None:
        self._directory = f"{roots.sys}/dev/block/{devno_text(number)}"
        self._fd: int | None = None

    def is_none(self) -> bool:
        """Return whether there is none; False where the kernel does not say so."""
        if self._fd is None:
            self._fd = self._open()
        try:
            return os.pread(self._fd, 32, 0).strip() == b"write through"
        except OSError:  # there is no such disk, or none any more
            return False

    def close(self) -> None:
        """Close the attribute, if it was read."""
        fd, self._fd = self._fd, -1
        if fd is not None and fd >= 0:
            os.close(fd)

    def _open(self) -> int:
        for queue in ("queue", "../queue"):  # a partition's is that of its disk
            try:
                return os.open(f"{self._directory}/{queue}/write_cache", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                pass
        return -1
