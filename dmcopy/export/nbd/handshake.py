"""The handshake, fixed newstyle: a client says what it wants, until it has chosen an export.

It is fed with bytes and answers with bytes, and knows of no socket. What a client may have sent
that was not looked at yet is never longer than an option.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from dmcopy.export.nbd import protocol as nbd
from dmcopy.io.region import Device
from dmcopy.units import PAGE_SIZE, SECTOR_SHIFT

MAX_OPTION: Final = 16 << 10
"""The most data of an option: a name of 4096 bytes, and as many infos as there can be."""
_MAX_OPTIONS: Final = 256
"""More than any client has to say."""
_CLIENT_FLAGS: Final = struct.Struct("!I")
_SHORT: Final = struct.Struct("!H")
_LONG: Final = struct.Struct("!I")
_INFO_EXPORT: Final = struct.Struct("!HQH")
_INFO_BLOCK_SIZE: Final = struct.Struct("!HIII")


class Handshake:
    """One handshake over the exports that there are; the last one is also called "".

    `feed` returns what is to be sent. Then either `chosen` is the name of an export, and `rest`
    what came behind; or `ended`, when there is nothing more to be said; or neither.

    Attributes:
        structured: reads are to be answered in chunks.
        allocation: the export of which the client asks where its holes are.
        starting_tls: TLS begins when the answer is sent; call `encrypted` then. With `tls` nothing
            else is to be had before.
    """

    def __init__(self, exports: dict[str, Device], *, tls: bool = False) -> None:
        self.greeting = nbd.GREETING.pack(
            nbd.INIT_MAGIC, nbd.OPTION_MAGIC, nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES
        )
        self.chosen: str | None = None
        self.structured = False
        self.allocation: str | None = None
        self.starting_tls = False
        self.ended = False
        self.rest = b""
        self._exports = exports
        self._tls = tls
        self._in_the_clear = True
        self._buffer = bytearray()
        self._flags: int | None = None
        self._options = 0

    def feed(self, data: bytes | memoryview) -> bytes:
        """Take what a client sent; return the answer."""
        self._buffer += data
        answer = b""
        while not (self.ended or self.starting_tls) and self.chosen is None:
            said = self._next()
            if said is None:
                break
            answer += said
        if self.chosen is not None:
            self.rest = bytes(self._buffer)
            self._buffer.clear()
        return answer

    def encrypted(self) -> None:
        """Note that all that comes from here on has come by TLS."""
        self.starting_tls = self._in_the_clear = False

    def _next(self) -> bytes | None:
        """Answer the next thing in the buffer; None when it is not all there."""
        buffer = self._buffer
        if self._flags is None:
            if len(buffer) < _CLIENT_FLAGS.size:
                return None
            (self._flags,) = _CLIENT_FLAGS.unpack_from(buffer)
            del buffer[: _CLIENT_FLAGS.size]
            if self._flags & ~(nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES):
                return self._end()
            return b""
        if len(buffer) < nbd.OPTION.size:
            return None
        magic, option, length = nbd.OPTION.unpack_from(buffer)
        self._options += 1
        if magic != nbd.OPTION_MAGIC or self._options > _MAX_OPTIONS:
            return self._end()
        if length > MAX_OPTION:
            return self._end(nbd.option_reply(option, nbd.REP_ERR_TOO_BIG))
        if len(buffer) < nbd.OPTION.size + length:
            self._options -= 1
            return None
        data = bytes(buffer[nbd.OPTION.size : nbd.OPTION.size + length])
        del buffer[: nbd.OPTION.size + length]
        return self._answer(option, data)

    def _end(self, last: bytes = b"") -> bytes:
        self.ended = True
        return last

    def _answer(self, option: int, data: bytes) -> bytes:
        if option == nbd.OPT_ABORT:
            return self._end(nbd.option_reply(option, nbd.REP_ACK))
        if option == nbd.OPT_STARTTLS:
            return self._start_tls(data)
        if self._tls and self._in_the_clear:
            if option == nbd.OPT_EXPORT_NAME:  # which has no way to be refused
                return self._end()
            return nbd.option_reply(option, nbd.REP_ERR_TLS_REQD, b"this server wants TLS")
        if option == nbd.OPT_EXPORT_NAME:
            return self._export_name(data)
        if option in (nbd.OPT_INFO, nbd.OPT_GO):
            return self._go(option, data)
        if option in (nbd.OPT_LIST_META_CONTEXT, nbd.OPT_SET_META_CONTEXT):
            return self._contexts(option, data)
        if option not in (nbd.OPT_LIST, nbd.OPT_STRUCTURED_REPLY):
            return nbd.option_reply(option, nbd.REP_ERR_UNSUP)
        if data:
            return nbd.option_reply(option, nbd.REP_ERR_INVALID, b"this option takes no data")
        if option == nbd.OPT_STRUCTURED_REPLY:
            self.structured = True
            return nbd.option_reply(option, nbd.REP_ACK)
        names = [name.encode() for name in self._exports]
        servers = [
            nbd.option_reply(option, nbd.REP_SERVER, _LONG.pack(len(name)) + name) for name in names
        ]
        return b"".join(servers) + nbd.option_reply(option, nbd.REP_ACK)

    def _start_tls(self, data: bytes) -> bytes:
        """Agree to TLS. What came along with the request came in the clear."""
        option = nbd.OPT_STARTTLS
        if not self._tls:
            return nbd.option_reply(option, nbd.REP_ERR_UNSUP, b"this server has no TLS")
        if data or not self._in_the_clear:
            return nbd.option_reply(option, nbd.REP_ERR_INVALID, b"no data, and not twice")
        if self._buffer:
            return self._end()
        self.starting_tls = True
        return nbd.option_reply(option, nbd.REP_ACK)

    def _find(self, name: bytes) -> str | None:
        """Return the name of the export that is meant, or None where there is none of it."""
        if not name:
            return next(reversed(self._exports), None)
        text = name.decode(errors="replace")
        return text if text in self._exports else None

    def _export_name(self, data: bytes) -> bytes:
        """Take the old way to choose; it has no way to say that there is no such export."""
        name = self._find(data)
        if name is None:
            return self._end()
        self.chosen = name
        device = self._exports[name]
        flags = transmission_flags(device, structured=self.structured)
        answer = struct.pack("!QH", device.sectors << SECTOR_SHIFT, flags)
        assert self._flags is not None
        return answer if self._flags & nbd.NO_ZEROES else answer.ljust(134, b"\0")

    def _go(self, option: int, data: bytes) -> bytes:
        """Say what an export is; for OPT_GO, begin the transmission."""
        try:
            (length,) = _LONG.unpack_from(data)
            (infos,) = _SHORT.unpack_from(data, _LONG.size + length)
        except struct.error:
            infos = length = -1
        if len(data) != _LONG.size + length + _SHORT.size * (1 + infos):
            return nbd.option_reply(option, nbd.REP_ERR_INVALID, b"lengths do not add up")
        name = self._find(data[_LONG.size : _LONG.size + length])
        if name is None:
            return nbd.option_reply(option, nbd.REP_ERR_UNKNOWN, b"there is no such export")
        device = self._exports[name]
        size = device.sectors << SECTOR_SHIFT
        flags = transmission_flags(device, structured=self.structured)
        block = device.logical_block_size
        told = [
            _INFO_EXPORT.pack(nbd.INFO_EXPORT, size, flags),
            _SHORT.pack(nbd.INFO_NAME) + name.encode(),
            _INFO_BLOCK_SIZE.pack(
                nbd.INFO_BLOCK_SIZE, block, max(block, PAGE_SIZE), nbd.MAX_REQUEST
            ),
        ]
        answer = b"".join(nbd.option_reply(option, nbd.REP_INFO, info) for info in told)
        if option == nbd.OPT_GO:
            self.chosen = name
        return answer + nbd.option_reply(option, nbd.REP_ACK)

    def _contexts(self, option: int, data: bytes) -> bytes:
        """Tell of the one metadata context that there is, to be asked for or not."""
        self.allocation = None  # whatever becomes of this, it takes the place of what was set
        try:
            words = list(_words(data))
        except struct.error:
            words = []
        if not words or not self.structured:
            why = b"lengths do not add up, or replies are not structured"
            return nbd.option_reply(option, nbd.REP_ERR_INVALID, why)
        name, *queries = words
        export = self._find(name)
        if export is None:
            return nbd.option_reply(option, nbd.REP_ERR_UNKNOWN, b"there is no such export")
        listed = option == nbd.OPT_LIST_META_CONTEXT
        answer = b""
        if nbd.ALLOCATION in queries or (listed and (not queries or b"base:" in queries)):
            number = 0 if listed else nbd.ALLOCATION_ID
            context = _LONG.pack(number) + nbd.ALLOCATION
            answer = nbd.option_reply(option, nbd.REP_META_CONTEXT, context)
            self.allocation = None if listed else export
        return answer + nbd.option_reply(option, nbd.REP_ACK)


def transmission_flags(device: Device, *, structured: bool = False) -> int:
    """Return the flags of an export.

    CAN_MULTI_CONN is true: all connections are of one device, on one reactor, and a flush of it is
    for what completed on any of them.
    """
    flags = nbd.HAS_FLAGS | nbd.SEND_FLUSH | nbd.SEND_FUA | nbd.CAN_MULTI_CONN
    flags |= nbd.SEND_DF if structured else 0
    if device.read_only:
        return flags | nbd.READ_ONLY
    return flags | nbd.SEND_TRIM | nbd.SEND_WRITE_ZEROES | nbd.SEND_FAST_ZERO


def _words(data: bytes) -> Iterator[bytes]:
    """Yield the name and the queries that an option holds. Raises struct.error."""
    at = 0
    left = -1
    while left:
        (length,) = _LONG.unpack_from(data, at)
        at += _LONG.size
        if length > len(data) - at:
            raise struct.error("longer than it is")
        yield data[at : at + length]
        at += length
        if left < 0:
            (left,) = _LONG.unpack_from(data, at)
            at += _LONG.size
        else:
            left -= 1
    if at != len(data):
        raise struct.error("more than it says")
