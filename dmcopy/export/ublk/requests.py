"""The requests of a ublk device, carried out on the device behind it, many at a time."""

from __future__ import annotations

import errno
from functools import partial
from typing import Final, Protocol

from dmcopy.export.nbd.pieces import Pieces
from dmcopy.io import ublk
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device, IoRegion
from dmcopy.io.request import DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES, Io, Memory
from dmcopy.units import PAGE_SIZE, SECTOR_SHIFT

DEPTH: Final = 64
"""How many requests a device has under way; the kernel keeps the others."""
MAX_BYTES: Final = 256 << 10
"""What one request reads or writes at most: larger ones come in several, side by side."""


class Answers(Protocol):
    """Where requests come from, and their results go: a `Queue`."""

    def description(self, tag: int) -> tuple[int, int, int]:
        """See `Queue`."""

    def commit(self, tag: int, result: int) -> None:
        """See `Queue`."""


class UblkRequests:
    """Requests by their tags, each of which has `MAX_BYTES` of memory; on `device`.

    `queue` is to be set before the first of them; `under_way`: how many the device has.
    """

    queue: Answers

    def __init__(self, reactor: Reactor, device: Device) -> None:
        self._reactor = reactor
        self._device = device
        self._memory = Memory(DEPTH * MAX_BYTES // PAGE_SIZE)
        self._was_done = self._done  # bound once
        self.under_way = 0

    @property
    def addresses(self) -> list[int]:
        """The addresses of the tags' memory."""
        return [self._memory.address + tag * MAX_BYTES for tag in range(DEPTH)]

    def arrived(self, tag: int) -> None:
        """Begin what a tag asks for."""
        self.under_way += 1
        try:
            self._begin(tag)
        except Exception as error:  # the caller must not wait for ever
            self._end(tag, -errno.EIO)
            self._reactor.report(error)

    def release(self) -> None:
        """Give the memory back; nothing may be under way."""
        self._memory.close()

    def _begin(self, tag: int) -> None:
        what, sectors, start = self.queue.description(tag)
        operation, fua = what & ublk.OPERATION, bool(what & ublk.FUA)
        if operation == ublk.FLUSH:
            region = IoRegion(self._device, 0, 0)
            self._reactor.submit(Io(FLUSH, region, notify=self._was_done, context=tag))
            return
        region = IoRegion(self._device, start, sectors)
        if operation == ublk.READ:
            extents = ((tag * MAX_BYTES, sectors << SECTOR_SHIFT),)
            self._reactor.submit(
                Io(READ, region, self._memory, extents, self._was_done, context=tag)
            )
        elif self._device.read_only:
            self._end(tag, -errno.EROFS)
        elif operation == ublk.WRITE:
            extents = ((tag * MAX_BYTES, sectors << SECTOR_SHIFT),)
            self._reactor.submit(
                Io(WRITE, region, self._memory, extents, self._was_done, fua=fua, context=tag)
            )
        elif operation in (ublk.DISCARD, ublk.WRITE_ZEROES):
            op = DISCARD if operation == ublk.DISCARD else WRITE_ZEROES
            Pieces(self._reactor, op, region, partial(self._cleared, tag), fua=fua).start()
        else:
            self._end(tag, -errno.EOPNOTSUPP)

    def _done(self, request: Io) -> None:
        self._end(request.context, -request.error or request.bytes)

    def _cleared(self, tag: int, error: int) -> None:
        self._end(tag, -error)

    def _end(self, tag: int, result: int) -> None:
        self.under_way -= 1
        self.queue.commit(tag, result)
