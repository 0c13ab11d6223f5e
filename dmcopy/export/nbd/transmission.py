"""The transmission: requests of one connection, many at a time, carried out on one device.

Data goes from the socket into pages and from there to the device, and back, without a copy but for
what comes along with a request's head. A connection has pages for `MAX_REQUEST` bytes and
`MAX_BUSY` requests; where it has no more of either, nothing is read from it until some are
answered, so that memory stays bounded whatever a peer sends or fails to take.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Final

from dmcopy.export.nbd import protocol as nbd
from dmcopy.export.nbd.holes import extents
from dmcopy.export.nbd.pieces import Pieces
from dmcopy.export.wire import Wire
from dmcopy.io.region import Device, IoRegion
from dmcopy.io.request import DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES, Extent, Io, Op, behind, cut
from dmcopy.kcopyd.pages import Extents, PagePool
from dmcopy.units import PAGE_SIZE, SECTOR_SHIFT

MAX_BUSY: Final = 256
_INBOX_BYTES: Final = 64 << 10
_ROUNDS: Final = 8
"""How often one connection is read from before others have their turn."""
_MAX_EXTENTS: Final = 1000
"""IOV_MAX is 1024."""
_WAIT: Final = -1
_GROWING: Final = {nbd.CMD_WRITE, nbd.CMD_WRITE_ZEROES}


class Transmission:
    """Takes requests from `wire` for `device`, after the handshake; see `start`.

    Attributes:
        under_way: how many requests the device has; when the wire is closed too, all is over, and
            `over` is called.
    """

    def __init__(
        self,
        wire: Wire,
        device: Device,
        over: Callable[[], object],
        *,
        structured: bool,
        allocation: bool = False,
    ) -> None:
        self.device = device
        self.under_way = 0
        self._wire = wire
        self._over = over
        self._structured = structured
        self._allocation = allocation
        self._reactor = wire.reactor
        self._pool = PagePool(nbd.MAX_REQUEST // PAGE_SIZE)
        self._inbox = memoryview(bytearray(_INBOX_BYTES))
        self._begin = self._end = 0
        # A write whose data is not all there yet; where the rest of it goes; or how much of a
        # refused one's is to be passed over.
        self._write: Io | None = None
        self._sink: list[memoryview] = []
        self._skip = 0
        self._skipped: bytes = b""
        self._busy = 0
        self._stalled = False
        self._ending = False

    def start(self, rest: bytes) -> None:
        """Begin with `rest`, which came along with the end of the handshake."""
        self._end = len(rest)
        self._inbox[: len(rest)] = rest
        self._parse()

    def readable(self) -> None:
        """Read what has arrived, and begin the requests in it."""
        for _ in range(_ROUNDS):
            into = self._sink or [self._inbox[self._end :]]
            room = sum(map(len, into))
            got = self._wire.receive(*into)
            if got is None:
                return
            if not got:
                self._wire.close()
                return
            if self._sink:
                self._sink = behind(self._sink, got)
                self._begin_write()
            else:
                self._end += got
            self._parse()
            if got < room or not self._wire.reading:
                return

    def lost(self) -> None:
        """Note that the wire is closed: nothing that is under way will be answered."""
        self._write, self._sink, self._ending = None, [], True
        self._check_over()

    def stop(self) -> None:
        """Take no more requests; when those that are under way are answered, close the wire."""
        self._ending = True
        self._wire.reading = False
        if self._write is not None or self._skip:  # the rest of its data will not come
            self._write, self._sink, self._skip = None, [], 0
            self._busy -= 1
        if not self._busy:
            self._wire.end()

    def _parse(self) -> None:
        """Begin the requests that are in the inbox, until one is not all there, or has to wait."""
        while not self._sink and not self._ending:
            there = self._end - self._begin
            if self._skip:
                passed = min(self._skip, there)
                self._begin += passed
                self._skip -= passed
                if self._skip:
                    break
                self._answer(self._skipped)
                continue
            if there < nbd.REQUEST.size:
                break
            length = self._take()
            if length == _WAIT:
                self._stalled = True
                self._wire.reading = False
                break
        there = self._end - self._begin
        if self._begin:
            self._inbox[:there] = bytes(self._inbox[self._begin : self._end])
            self._begin, self._end = 0, there

    def _take(self) -> int:
        """Begin the request at the front of the inbox; return `_WAIT` if it has to wait."""
        magic, flags, command, cookie, offset, length = nbd.REQUEST.unpack_from(
            self._inbox, self._begin
        )
        if magic != nbd.REQUEST_MAGIC:
            self._wire.close()  # whatever this is, where the next request begins is not known
            self._ending = True
            return 0
        if command == nbd.CMD_DISC:
            self.stop()
            return 0
        if self._busy >= MAX_BUSY:
            return _WAIT
        error = self._refusal(command, flags, offset, length)
        extents: Extents = ()
        if not error and length and command <= nbd.CMD_WRITE:
            found = self._pages(length)
            if found is None:
                return _WAIT
            extents = found
        self._begin += nbd.REQUEST.size
        self._busy += 1
        if error:
            self._refuse(command, cookie, length, error)
        elif extents and command == nbd.CMD_READ:
            self._submit(READ, offset, length, extents, partial(self._read, cookie, extents))
        elif extents:
            self._receive_write(flags, cookie, offset, length, extents)
        elif command == nbd.CMD_BLOCK_STATUS:
            self._tell_extents(cookie, offset, length, one=bool(flags & nbd.FLAG_REQ_ONE))
        elif command == nbd.CMD_FLUSH:
            self._submit(FLUSH, 0, 0, (), partial(self._done, cookie))
        elif not length:
            self._answer(self._success(command, cookie, offset))
        else:
            self._range(command, flags, cookie, offset, length)
        return 0

    def _refusal(self, command: int, flags: int, offset: int, length: int) -> int:
        """Return the errno that a request is answered with immediately, 0 for a good one."""
        known = nbd.FLAGS.get(command)
        if known is None or flags & ~known or (flags & nbd.FLAG_DF and not self._structured):
            return errno.EINVAL
        if command == nbd.CMD_FLUSH:
            return 0
        device = self.device
        if command == nbd.CMD_BLOCK_STATUS:
            if not (self._allocation and length):
                return errno.EINVAL
        elif command != nbd.CMD_READ and device.read_only:
            return errno.EPERM
        if (offset | length) % device.logical_block_size:
            return errno.EINVAL
        if offset + length > device.sectors << SECTOR_SHIFT:
            return errno.ENOSPC if command in _GROWING else errno.EINVAL
        if command <= nbd.CMD_WRITE and length > nbd.MAX_REQUEST:
            return errno.EOVERFLOW
        if flags & nbd.FLAG_FAST_ZERO:
            # Whether a device has a quicker way than to write zeroes cannot be known before.
            return errno.EOPNOTSUPP
        return 0

    def _refuse(self, command: int, cookie: int, length: int, error: int) -> None:
        if command in (nbd.CMD_READ, nbd.CMD_BLOCK_STATUS) and self._structured:
            self._answer(nbd.read_error(cookie, error))
        elif command == nbd.CMD_WRITE and length:
            self._skip, self._skipped = length, nbd.simple_reply(cookie, error)
        else:
            self._answer(nbd.simple_reply(cookie, error))

    def _success(self, command: int, cookie: int, offset: int) -> bytes:
        if command == nbd.CMD_READ and self._structured:
            return nbd.read_reply(cookie, offset, 0)
        return nbd.simple_reply(cookie)

    def _pages(self, length: int) -> Extents | None:
        """Take pages for a request; None where there are too few, or in too many pieces."""
        taken = self._pool.take(length)
        if taken is None or len(taken) > _MAX_EXTENTS:
            if taken is not None:
                self._pool.give(taken)
            return None
        return taken

    def _submit(
        self,
        op: Op,
        offset: int,
        length: int,
        extents: Extents,
        notify: Callable[[Io], object],
    ) -> None:
        self.under_way += 1
        region = IoRegion(self.device, offset >> SECTOR_SHIFT, length >> SECTOR_SHIFT)
        data = _exactly(extents, length)
        self._reactor.submit(Io(op, region, self._pool.memory, data, notify))

    def _receive_write(
        self, flags: int, cookie: int, offset: int, length: int, extents: Extents
    ) -> None:
        """Take what is there of a write's data; the rest goes from the socket into its pages."""
        region = IoRegion(self.device, offset >> SECTOR_SHIFT, length >> SECTOR_SHIFT)
        data = _exactly(extents, length)
        fua = bool(flags & nbd.FLAG_FUA)
        written = partial(self._written, cookie, extents)
        self._write = Io(WRITE, region, self._pool.memory, data, written, fua=fua)
        views = self._pool.memory.views(data)
        for view in views:
            part = min(len(view), self._end - self._begin)
            view[:part] = self._inbox[self._begin : self._begin + part]
            self._begin += part
            length -= part
        if length:
            self._sink = behind(views, sum(map(len, views)) - length)
        self._begin_write()

    def _begin_write(self) -> None:
        if not self._sink and self._write is not None:
            write, self._write = self._write, None
            self.under_way += 1
            self._reactor.submit(write)

    def _range(self, command: int, flags: int, cookie: int, offset: int, length: int) -> None:
        """Trim or zero a range, which can be longer than any write."""
        op = DISCARD
        if command == nbd.CMD_WRITE_ZEROES:
            op = WRITE if flags & nbd.FLAG_NO_HOLE else WRITE_ZEROES
        region = IoRegion(self.device, offset >> SECTOR_SHIFT, length >> SECTOR_SHIFT)
        self.under_way += 1
        ended = partial(self._ended, cookie)
        Pieces(self._reactor, op, region, ended, fua=bool(flags & nbd.FLAG_FUA)).start()

    def _tell_extents(self, cookie: int, offset: int, length: int, *, one: bool) -> None:
        try:
            found = extents(self.device, offset, offset + length)
            told = list(islice(found, 1 if one else nbd.MAX_EXTENTS))
        except OSError as error:
            self._answer(nbd.read_error(cookie, error.errno or errno.EIO))
        else:
            self._answer(nbd.block_status(cookie, told))

    def _read(self, cookie: int, extents: Extents, io: Io) -> None:
        self.under_way -= 1
        if not self._wire.is_open:
            self._check_over()
            return
        if io.error:
            reply = nbd.read_error if self._structured else nbd.simple_reply
            self._pool.give(extents)
            self._answer(reply(cookie, io.error))
            return
        if self._structured:
            head = nbd.read_reply(cookie, io.sector << SECTOR_SHIFT, io.bytes)
        else:
            head = nbd.simple_reply(cookie)
        views = self._pool.memory.views(io.extents)
        self._wire.send(head, *views, sent=partial(self._sent, extents))

    def _written(self, cookie: int, extents: Extents, io: Io) -> None:
        self._pool.give(extents)
        self._ended(cookie, io.error)

    def _done(self, cookie: int, io: Io) -> None:
        self._ended(cookie, io.error)

    def _ended(self, cookie: int, error: int) -> None:
        self.under_way -= 1
        if self._wire.is_open:
            self._answer(nbd.simple_reply(cookie, error))
        else:
            self._check_over()

    def _check_over(self) -> None:
        if not self.under_way:
            self._over()

    def _answer(self, reply: bytes) -> None:
        self._wire.send(reply, sent=self._sent)

    def _sent(self, extents: Extents = ()) -> None:
        """Note that a reply is with the kernel: there is room for another request."""
        if extents:
            self._pool.give(extents)
        self._busy -= 1
        if self._ending:
            if not self._busy:
                self._wire.end()
        elif self._stalled:
            self._stalled = False
            self._wire.reading = True
            self._parse()


def _exactly(extents: Extents, length: int) -> tuple[Extent, ...]:
    """Return extents without what is too much of the last page."""
    return cut(extents, 0, length) if length % PAGE_SIZE else extents
