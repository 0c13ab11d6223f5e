"""Whole reads and writes at byte offsets, through page-aligned memory, in bounded pieces.

O_DIRECT wants memory, offset and length aligned; `mmap` gives pages. A transfer that the kernel
cut short is continued, so the callers see all or an error.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import Final

PIECE: Final = 1 << 20
_ZEROES: Final = mmap.mmap(-1, PIECE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def read_whole(fd: int, offset: int, length: int) -> bytes:
    """Return exactly `length` bytes from `offset`; EIO where the device ends before that."""
    parts = []
    with mmap.mmap(-1, min(PIECE, length) or 1) as memory, memoryview(memory) as view:
        while length:
            with view[: min(PIECE, length)] as window:
                got = os.preadv(fd, [window], offset)
            if got == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            parts.append(memory[:got])
            offset += got
            length -= got
    return b"".join(parts)


def write_whole(fd: int, offset: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of `data` at `offset`."""
    source = memoryview(data).cast("B")
    with mmap.mmap(-1, min(PIECE, len(source)) or 1) as memory, memoryview(memory) as view:
        while source:
            with view[: min(PIECE, len(source))] as window:
                window[:] = source[: len(window)]
                written = _write(fd, window, offset)
            source = source[written:]
            offset += written


def write_zeroes(fd: int, offset: int, length: int) -> None:
    """Write `length` zero bytes at `offset`, from one buffer that all threads share."""
    with memoryview(_ZEROES) as view:
        while length:
            with view[: min(PIECE, length)] as window:
                written = _write(fd, window, offset)
            offset += written
            length -= written


def _write(fd: int, window: memoryview, offset: int) -> int:
    written = os.pwritev(fd, [window], offset)
    if written == 0:  # no kernel should; looping on it for ever would be worse than an error
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return written
