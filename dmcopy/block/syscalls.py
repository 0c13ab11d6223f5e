"""The system calls on block devices and files that Python's `os` and `fcntl` do not have.

Each one releases the GIL, is repeated after EINTR, and raises the kernel's OSError. The ioctl
numbers are those of include/uapi/linux/fs.h and loop.h on the architectures with the generic
encoding (x86-64, arm64, riscv, s390x).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from typing import Any, Final, NamedTuple

_BLKROGET: Final = 0x125E
_BLKFLSBUF: Final = 0x1261
_BLKSSZGET: Final = 0x1268
_BLKDISCARD: Final = 0x1277
_BLKPBSZGET: Final = 0x127B
_BLKZEROOUT: Final = 0x127F
_LOOP_CLR_FD: Final = 0x4C01
_LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_INFO64: Final = "=5Q212x"  # struct loop_info64 in include/uapi/linux/loop.h

FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02

_AT_EMPTY_PATH: Final = 0x1000
_STATX_BTIME: Final = 0x800
_STATX_DIOALIGN: Final = 0x2000
_STATX_SIZE: Final = 256  # sizeof(struct statx); the kernel keeps it

_libc = ctypes.CDLL(None, use_errno=True)


def _prototype(name: str, *argtypes: Any) -> Any:
    function = getattr(_libc, name)
    function.argtypes = argtypes
    function.restype = ctypes.c_int
    return function


# glibc's fallocate takes a 32-bit offset on 32-bit machines; fallocate64 is the same everywhere.
_fallocate64 = _prototype("fallocate64", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_statx = _prototype(
    "statx", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p
)


class DirectAlignment(NamedTuple):
    """What a file asks of O_DIRECT, in bytes; both 0 where it does not do O_DIRECT at all."""

    memory: int
    offset: int


class LoopStatus(NamedTuple):
    """What a loop device is made of: numbers as stat(2) has them, offset and limit in bytes."""

    device: int
    inode: int
    rdevice: int
    offset: int
    size_limit: int


def _checked(result: int) -> bool:
    """Return False to repeat the call; raise what it failed with."""
    if result == 0:
        return True
    number = ctypes.get_errno()
    if number == errno.EINTR:
        return False
    raise OSError(number, os.strerror(number))


def fallocate(fd: int, mode: int, start: int, length: int) -> None:
    """fallocate(2), byte offsets; Python's own `os.posix_fallocate` has no mode."""
    while not _checked(_fallocate64(fd, mode, start, length)):
        pass


def direct_alignment(fd: int) -> DirectAlignment | None:
    """Return what the file system asks of O_DIRECT, or None where the kernel does not say.

    Linux 6.1 and later: statx(2), STATX_DIOALIGN. tmpfs, overlayfs and network file systems stay
    silent.
    """
    answer = _statx_answer(fd, _STATX_DIOALIGN)
    return DirectAlignment(*struct.unpack_from("=II", answer, 152)) if answer else None


def birth_time(fd: int) -> int | None:
    """Return when a file was made, in nanoseconds since 1970, None where that is not noted.

    statx(2), STATX_BTIME: an inode's number comes back after a removal, this time does not. Some
    network file systems stay silent.
    """
    answer = _statx_answer(fd, _STATX_BTIME)
    if answer is None:
        return None
    seconds, nanoseconds = struct.unpack_from("=qI", answer, 80)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def _statx_answer(fd: int, wanted: int) -> bytes | None:
    """Return statx's answer about an open file, None where what is `wanted` is not in it."""
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    try:
        while not _checked(_statx(fd, b"", _AT_EMPTY_PATH, wanted, buffer)):
            pass
    except OSError:
        return None
    (mask,) = struct.unpack_from("=I", buffer, 0)
    return buffer.raw if mask & wanted else None


def _ioctl(fd: int, request: int, argument: bytes) -> bytes:
    while True:
        try:
            return fcntl.ioctl(fd, request, argument)
        except InterruptedError:  # PEP 475 does not reach fcntl.ioctl before Python 3.13
            continue


def _int_ioctl(fd: int, request: int) -> int:
    (value,) = struct.unpack("=i", _ioctl(fd, request, bytes(4)))
    return int(value)


def block_is_read_only(fd: int) -> bool:
    """Return whether the block device is set read-only (BLKROGET); open(2) does not tell."""
    return _int_ioctl(fd, _BLKROGET) != 0


def block_logical_size(fd: int) -> int:
    """Return a block device's logical block size in bytes: the least that can be read."""
    return _int_ioctl(fd, _BLKSSZGET)


def block_physical_size(fd: int) -> int:
    """Return a block device's physical block size in bytes: the least that the device writes."""
    return _int_ioctl(fd, _BLKPBSZGET)


def block_discard(fd: int, start: int, length: int) -> None:
    """BLKDISCARD: tell a block device that these bytes are not needed any more."""
    _ioctl(fd, _BLKDISCARD, struct.pack("=QQ", start, length))


def block_zero_out(fd: int, start: int, length: int) -> None:
    """BLKZEROOUT: make these bytes zero, by the device's own command or by writing zeroes."""
    _ioctl(fd, _BLKZEROOUT, struct.pack("=QQ", start, length))


def flush_buffers(fd: int) -> None:
    """BLKFLSBUF: write what the page cache has of a block device, and forget it."""
    _ioctl(fd, _BLKFLSBUF, b"")


def loop_status(fd: int) -> LoopStatus:
    """LOOP_GET_STATUS64; ENXIO for a loop device that is free."""
    size = struct.calcsize(_LOOP_INFO64)
    return LoopStatus(*struct.unpack(_LOOP_INFO64, _ioctl(fd, _LOOP_GET_STATUS64, bytes(size))))


def loop_clear(fd: int) -> None:
    """LOOP_CLR_FD: detach what is behind it, at the last close; ENXIO for one that is free."""
    _ioctl(fd, _LOOP_CLR_FD, b"")


def byte_size(fd: int) -> int:
    """Return the size in bytes of a block device or regular file."""
    # lseek and not BLKGETSIZE64: the same call for files, and no ioctl number with a size in it.
    return os.lseek(fd, 0, os.SEEK_END)
