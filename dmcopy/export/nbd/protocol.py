"""The numbers and structures of NBD. Pure; all integers are big-endian, all lengths bytes.

Source: doc/proto.md of https://github.com/NetworkBlockDevice/nbd.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from struct import Struct
from typing import Final

MAX_REQUEST: Final = 32 << 20
"""The longest read or write: what clients may take for granted that ask for no sizes."""
MAX_STRING: Final = 4096
"""The longest name of an export."""

GREETING: Final = Struct("!8s8sH")
INIT_MAGIC: Final = b"NBDMAGIC"
OPTION_MAGIC: Final = b"IHAVEOPT"
FIXED_NEWSTYLE: Final = 1
NO_ZEROES: Final = 2

OPTION: Final = Struct("!8sII")
OPT_EXPORT_NAME: Final = 1
OPT_ABORT: Final = 2
OPT_LIST: Final = 3
OPT_STARTTLS: Final = 5
OPT_INFO: Final = 6
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_LIST_META_CONTEXT: Final = 9
OPT_SET_META_CONTEXT: Final = 10

OPTION_REPLY: Final = Struct("!QIII")
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERR_UNSUP: Final = 0x80000001
REP_ERR_INVALID: Final = 0x80000003
REP_ERR_TLS_REQD: Final = 0x80000005
REP_ERR_UNKNOWN: Final = 0x80000006
REP_ERR_TOO_BIG: Final = 0x80000009

INFO_EXPORT: Final = 0
INFO_NAME: Final = 1
INFO_BLOCK_SIZE: Final = 3

HAS_FLAGS: Final = 1 << 0
READ_ONLY: Final = 1 << 1
SEND_FLUSH: Final = 1 << 2
SEND_FUA: Final = 1 << 3
SEND_TRIM: Final = 1 << 5
SEND_WRITE_ZEROES: Final = 1 << 6
SEND_DF: Final = 1 << 7
CAN_MULTI_CONN: Final = 1 << 8
SEND_FAST_ZERO: Final = 1 << 11

REQUEST: Final = Struct("!IHHQQI")
REQUEST_MAGIC: Final = 0x25609513
CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7

FLAG_FUA: Final = 1 << 0
FLAG_NO_HOLE: Final = 1 << 1
FLAG_DF: Final = 1 << 2
FLAG_REQ_ONE: Final = 1 << 3
FLAG_FAST_ZERO: Final = 1 << 4

FLAGS: Final = {
    # Clients may set FUA on any command where the server takes it at all.
    CMD_READ: FLAG_FUA | FLAG_DF,
    CMD_WRITE: FLAG_FUA,
    CMD_FLUSH: FLAG_FUA,
    CMD_TRIM: FLAG_FUA,
    CMD_WRITE_ZEROES: FLAG_FUA | FLAG_NO_HOLE | FLAG_FAST_ZERO,
    CMD_BLOCK_STATUS: FLAG_FUA | FLAG_REQ_ONE,
}
"""The flags that each command may have."""

SIMPLE_REPLY: Final = Struct("!IIQ")
SIMPLE_REPLY_MAGIC: Final = 0x67446698
CHUNK: Final = Struct("!IHHQI")
CHUNK_MAGIC: Final = 0x668E33EF
CHUNK_DONE: Final = 1
CHUNK_NONE: Final = 0
CHUNK_OFFSET_DATA: Final = 1
CHUNK_BLOCK_STATUS: Final = 5
CHUNK_ERROR: Final = 0x8001
OFFSET: Final = Struct("!Q")
CHUNK_ERROR_BODY: Final = Struct("!IH")

ALLOCATION: Final = b"base:allocation"
"""The one metadata context; its number:"""
ALLOCATION_ID: Final = 1
MAX_EXTENTS: Final = 512
"""As many as a reply to CMD_BLOCK_STATUS tells of; clients ask on."""
_STATE_HOLE_ZERO: Final = 1 | 2
_EXTENT: Final = Struct("!II")

_ERRORS: Final = {
    **{
        number: number
        for number in (
            errno.EPERM,
            errno.EIO,
            errno.ENOMEM,
            errno.EINVAL,
            errno.ENOSPC,
            errno.EOVERFLOW,
            errno.EOPNOTSUPP,
            errno.ESHUTDOWN,
        )
    },
    errno.EROFS: errno.EPERM,
    errno.EACCES: errno.EPERM,
    errno.EDQUOT: errno.ENOSPC,
    errno.EFBIG: errno.ENOSPC,
}


def error_number(number: int) -> int:
    """Return what the protocol has for an errno: EIO for those that it does not know."""
    return _ERRORS.get(number, errno.EIO)


def option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    """Return a reply to an option of the handshake."""
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def simple_reply(cookie: int, error: int = 0) -> bytes:
    """Return a reply without data; what a read has read follows it. `error`: an errno."""
    return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error_number(error) if error else 0, cookie)


def read_reply(cookie: int, offset: int, length: int) -> bytes:
    """Return what comes before the data of a structured reply, which is in one piece."""
    if not length:  # a chunk of data has at least one byte
        return CHUNK.pack(CHUNK_MAGIC, CHUNK_DONE, CHUNK_NONE, cookie, 0)
    head = CHUNK.pack(CHUNK_MAGIC, CHUNK_DONE, CHUNK_OFFSET_DATA, cookie, OFFSET.size + length)
    return head + OFFSET.pack(offset)


def block_status(cookie: int, extents: Iterable[tuple[int, bool]]) -> bytes:
    """Return a reply that tells of extents: how long in bytes, and whether it is a hole."""
    told = b"".join(
        _EXTENT.pack(length, _STATE_HOLE_ZERO if hole else 0) for length, hole in extents
    )
    body = ALLOCATION_ID.to_bytes(4, "big") + told
    return CHUNK.pack(CHUNK_MAGIC, CHUNK_DONE, CHUNK_BLOCK_STATUS, cookie, len(body)) + body


def read_error(cookie: int, error: int) -> bytes:
    """Return a structured reply that says only what went wrong. `error`: an errno."""
    head = CHUNK.pack(CHUNK_MAGIC, CHUNK_DONE, CHUNK_ERROR, cookie, CHUNK_ERROR_BODY.size)
    return head + CHUNK_ERROR_BODY.pack(error_number(error), 0)
