"""The messages of /dev/fuse, as bytes: only those that one file without a directory needs.

Layouts and numbers are those of include/uapi/linux/fuse.h, protocol 7.28 and later (Linux 4.20),
in the byte order of the machine. Offsets, sizes and lengths are in bytes.
"""

from __future__ import annotations

import enum
import stat
import struct
from typing import Final, NamedTuple

MAJOR: Final = 7
MINOR: Final = 41
OLDEST: Final = 28
"""Before it a request has at most 128 KiB, whatever is asked for."""

ROOT: Final = 1


class Opcode(enum.IntEnum):
    """The requests that are answered otherwise than with ENOSYS."""

    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    INIT = 26
    DESTROY = 38
    IOCTL = 39
    BATCH_FORGET = 42
    FALLOCATE = 43


ASYNC_READ: Final = 1 << 0
BIG_WRITES: Final = 1 << 5
ASYNC_DIO: Final = 1 << 15
MAX_PAGES: Final = 1 << 22
INIT_EXT: Final = 1 << 30
DIRECT_IO_ALLOW_MMAP: Final = 1 << 36
_WANTED: Final = ASYNC_READ | BIG_WRITES | ASYNC_DIO | MAX_PAGES | INIT_EXT | DIRECT_IO_ALLOW_MMAP

FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_NOFLUSH: Final = 1 << 5
FOPEN_PARALLEL_DIRECT_WRITES: Final = 1 << 6

FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_FH: Final = 1 << 6

HEADER: Final = struct.Struct("=IIQQIIIHH")
"""fuse_in_header: length, opcode, unique, node, uid, gid, pid, length of extensions, padding."""

IO: Final = struct.Struct("=QQIIQII")
"""fuse_read_in and fuse_write_in: handle, offset, size, …, lock owner, flags of open(2), padding.

It is 40 bytes long, as the header is: the data of a write begins 80 bytes into the message.
"""

REPLY: Final = struct.Struct("=IiQ")
"""fuse_out_header: length, error (0, or an errno below 0), unique."""

HEAD_BYTES: Final = HEADER.size + IO.size

_INIT_IN: Final = struct.Struct("=IIII")
_INIT_FLAGS2: Final = struct.Struct("=I")
_INIT_OUT: Final = struct.Struct("=IIIIHHIIHHI28x")
_ATTR_OUT: Final = struct.Struct("=QI4x6Q10I")
_OPEN_OUT: Final = struct.Struct("=QIi")
_WRITE_OUT: Final = struct.Struct("=II")
_STATFS_OUT: Final = struct.Struct("=5Q3I28x")
_SETATTR_IN: Final = struct.Struct("=I4xQQ")
_FALLOCATE_IN: Final = struct.Struct("=QQQI")
_OPEN_IN: Final = struct.Struct("=I")
_INVAL_INODE: Final = struct.Struct("=Qqq")
_NOTIFY_INVAL_INODE: Final = 2
_FOR_EVER: Final = 1 << 30  # seconds


class Init(NamedTuple):
    """What the kernel offers: its protocol, and the features that it has."""

    major: int
    minor: int
    readahead: int
    flags: int


class SetAttr(NamedTuple):
    """A change of attributes: which (FATTR_*), and the new size."""

    which: int
    size: int


class Fallocate(NamedTuple):
    """fallocate(2)'s arguments."""

    offset: int
    length: int
    mode: int


def parse_init(body: bytes) -> Init:
    """Parse fuse_init_in, whose second half only newer kernels send."""
    major, minor, readahead, flags = _INIT_IN.unpack_from(body)
    if flags & INIT_EXT and len(body) >= _INIT_IN.size + _INIT_FLAGS2.size:
        flags |= _INIT_FLAGS2.unpack_from(body, _INIT_IN.size)[0] << 32
    return Init(major, minor, readahead, flags)


def init_reply(offer: Init, *, max_bytes: int, depth: int) -> bytes:
    """Build fuse_init_out: what of the offer is wanted, and `max_bytes` a request at most.

    One page more than `max_bytes` takes: memory of the caller's that does not begin on a page then
    still goes in requests of whole `max_bytes`, and not in pieces that begin and end anywhere.
    `depth`: how many asynchronous requests, such as a loop device's, the kernel sends at a time.
    """
    flags = offer.flags & _WANTED
    return _INIT_OUT.pack(
        MAJOR, min(offer.minor, MINOR), offer.readahead, flags & 0xFFFFFFFF,
        depth, depth * 3 // 4, max_bytes, 1, max_bytes // 4096 + 1, 0, flags >> 32,
    )  # fmt: skip


def parse_setattr(body: bytes) -> SetAttr:
    which, _handle, size = _SETATTR_IN.unpack_from(body)
    return SetAttr(which, size)


def parse_fallocate(body: bytes) -> Fallocate:
    _handle, offset, length, mode = _FALLOCATE_IN.unpack_from(body)
    return Fallocate(offset, length, mode)


def parse_open(body: bytes) -> int:
    """Parse fuse_open_in: the flags of open(2)."""
    return int(_OPEN_IN.unpack_from(body)[0])


def attr_reply(size: int, *, mode: int, owner: tuple[int, int], seconds: int) -> bytes:
    """Build fuse_attr_out of a regular file, which stands until `resized`.

    `owner`: user and group; `seconds`: when it was last changed. The kernel must not ask again by
    itself: LOOP_GET_STATUS64 of a loop device over the file would, and to claim a disk is to look
    through all loop devices so. The server, which claims disks, too, would wait for itself.
    """
    return _ATTR_OUT.pack(
        _FOR_EVER, 0,
        ROOT, size, size >> 9, seconds, seconds, seconds,
        0, 0, 0, stat.S_IFREG | mode, 1, *owner, 0, 4096, 0,
    )  # fmt: skip


def resized() -> bytes:
    """Build the notification that attributes are to be asked for anew (FUSE_NOTIFY_INVAL_INODE)."""
    body = _INVAL_INODE.pack(ROOT, -1, 0)
    return REPLY.pack(REPLY.size + len(body), _NOTIFY_INVAL_INODE, 0) + body


def open_reply() -> bytes:
    """Build fuse_open_out: reads and writes come here, and not from the page cache.

    The content changes by other ways than this file: another front end, a table that is swapped.
    With nothing in a cache, close(2) need not ask: it would wait where even SIGKILL does not reach.
    """
    flags = FOPEN_DIRECT_IO | FOPEN_NOFLUSH | FOPEN_PARALLEL_DIRECT_WRITES
    return _OPEN_OUT.pack(0, flags, 0)


def write_reply(size: int) -> bytes:
    """Build fuse_write_out: how many bytes were written."""
    return _WRITE_OUT.pack(size, 0)


def statfs_reply(size: int) -> bytes:
    """Build fuse_statfs_out: all is in use."""
    return _STATFS_OUT.pack(size >> 12, 0, 0, 1, 0, 4096, 255, 4096)


def reply(unique: int, body: bytes = b"") -> bytes:
    """Build the answer to the request `unique`."""
    return REPLY.pack(REPLY.size + len(body), 0, unique) + body


def error_reply(unique: int, error: int) -> bytes:
    """Build the answer that says `error`, an errno."""
    return REPLY.pack(REPLY.size, -error, unique)
