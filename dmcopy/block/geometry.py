"""How large a device or file is, in what blocks, and whether O_DIRECT serves there."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from typing import Final, NamedTuple

from dmcopy.block import syscalls
from dmcopy.errors import DeviceError
from dmcopy.units import PAGE_SIZE, SECTOR_SIZE

# What a kernel answers to O_DIRECT where it has none; any other error is the disk's.
_NO_DIRECT: Final = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
_NONE_HERE: Final = "its file system does no direct I/O"


class Geometry(NamedTuple):
    """Sizes in bytes. `direct_reason` says why I/O is buffered, "" when it is direct."""

    size_bytes: int
    logical_block_size: int
    physical_block_size: int
    direct: bool
    direct_reason: str


def measure(path: str, fd: int, *, is_block: bool, direct: bool | None) -> Geometry:
    """Measure what `fd` is, and switch O_DIRECT on where it serves (`direct` None or True).

    Raises DeviceError when direct I/O was insisted on and does not serve.
    """
    size = syscalls.byte_size(fd)
    if is_block:
        logical, physical = syscalls.block_logical_size(fd), syscalls.block_physical_size(fd)
        candidates = [logical]
    else:
        logical, physical = SECTOR_SIZE, PAGE_SIZE
        candidates = _file_blocks(fd)
    if direct is False:
        return Geometry(size, logical, physical, False, "buffered I/O was asked for")
    block, reason = _go_direct(fd, size, candidates)
    if not reason:
        return Geometry(size, block, max(block, physical), True, "")
    if direct:
        raise DeviceError(path, "use direct I/O", errno.EINVAL, reason)
    return Geometry(size, logical, physical, False, reason)


def _file_blocks(fd: int) -> list[int]:
    """Return the block sizes to try on a file, none where its file system does no O_DIRECT."""
    asked = syscalls.direct_alignment(fd)
    if asked is None:
        return [SECTOR_SIZE, PAGE_SIZE]
    return [max(asked.offset, SECTOR_SIZE)] if asked.offset else []


def _go_direct(fd: int, size: int, blocks: list[int]) -> tuple[int, str]:
    """Set O_DIRECT and try it; return the block size that serves, or why it stayed off."""
    if not blocks:
        return 0, _NONE_HERE
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
    except OSError:
        return 0, _NONE_HERE
    block = next((block for block in blocks if _serves(fd, block)), 0)
    # The last sectors of such a file could not be reached: a direct write there would extend it.
    if block and size // SECTOR_SIZE * SECTOR_SIZE % block == 0:
        return block, ""
    fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    if block:
        return 0, f"its size is not a whole number of {block}-byte blocks"
    return 0, "direct reads of it are refused"


def _serves(fd: int, block: int) -> bool:
    """Try one direct read. Holes are read without a look at the alignment, hence `_file_blocks`."""
    with mmap.mmap(-1, block) as memory:
        try:
            os.preadv(fd, [memory], 0)
        except OSError as error:
            return error.errno not in _NO_DIRECT
    return True
