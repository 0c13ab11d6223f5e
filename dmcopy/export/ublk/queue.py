"""The queue of a ublk device, on a ring of its own: requests come, results go back."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Sequence
from typing import Final

from dmcopy.errors import DeviceError
from dmcopy.io import ublk
from dmcopy.io.reactor import Reactor
from dmcopy.io.ring import COMMAND, OP_URING_CMD, SQE_SIZE, Ring, signed
from dmcopy.io.ublk import COMMIT, DESCRIPTION, FETCH, IO_COMMAND, IO_RESULT_AT
from dmcopy.units import PAGE_SIZE

_CODE_AT: Final = 8


class Queue:
    """The requests of /dev/ublkcN, by tags: `arrived` is called with the tag of each.

    `addresses` are those of the tags' memory: the driver copies the data of a write there before
    the request arrives, and takes the data of a read from there at its `commit`. (UBLK_F_USER_COPY
    would have it done by pread(2) and pwrite(2): a system call more for each request, which pays
    only where there is less memory than tags.) The driver takes commands from one thread only, the
    reactor's (ubq_daemon in drivers/block/ublk_drv.c, 6.12). Raises DeviceError.

    Attributes:
        live: how many tags the driver has, or may give. It takes them back when a device is
            stopped.
    """

    def __init__(
        self,
        reactor: Reactor,
        number: int,
        addresses: Sequence[int],
        arrived: Callable[[int], object],
    ) -> None:
        self.live = len(addresses)
        self._reactor = reactor
        self._arrived = arrived
        self._scheduled = False
        self._closed = False
        self._unsubmitted = 0
        path = ublk.queue_node(number)
        with contextlib.ExitStack() as exits:
            try:
                self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                exits.callback(os.close, self._fd)
                size = -(-self.live * DESCRIPTION.size // PAGE_SIZE) * PAGE_SIZE
                self._map = mmap.mmap(self._fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
                exits.callback(self._map.close)
                self._ring = Ring(self.live)
                exits.callback(self._ring.close)
                self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                exits.callback(os.close, self._bell)
                self._ring.register_eventfd(self._bell)
                self._fetch(addresses)
            except OSError as error:
                raise DeviceError(path, "wait for its requests", error.errno or 0) from error
            self._exits = exits.pop_all()
        reactor.watch(self._bell, self._ready)

    def description(self, tag: int) -> tuple[int, int, int]:
        """Return operation and flags, sectors and start of the request that has arrived."""
        what, sectors, start, _ = DESCRIPTION.unpack_from(self._map, tag * DESCRIPTION.size)
        return what, sectors, start

    def commit(self, tag: int, result: int) -> None:
        """End a request, with its length in bytes or minus an errno; wait for the tag's next."""
        if self._closed:
            return
        at = tag * SQE_SIZE + COMMAND.size + IO_RESULT_AT
        self._ring.sqes[at : at + 4] = result.to_bytes(4, "little", signed=True)
        self._queued.append(tag)
        if not self._scheduled:
            self._scheduled = True
            self._reactor.call_before_io(self._go)

    def close(self) -> None:
        """Take no more requests. Those not answered wait for the device's next server."""
        self._closed = True
        self._reactor.unwatch(self._bell)
        self._exits.close()

    def _fetch(self, addresses: Sequence[int]) -> None:
        """Have the driver give each tag a request. A tag's entry is its own from then on."""
        sqes = self._ring.sqes
        for tag, address in enumerate(addresses):
            COMMAND.pack_into(sqes, tag * SQE_SIZE, OP_URING_CMD, self._fd, FETCH, tag)
            IO_COMMAND.pack_into(sqes, tag * SQE_SIZE + COMMAND.size, 0, tag, 0, address)
        self._ring.queue(list(range(self.live)))
        left = self.live
        while left:
            left -= self._ring.enter(left, 0)
        for tag in range(len(addresses)):
            at = tag * SQE_SIZE + _CODE_AT
            sqes[at : at + 4] = COMMIT.to_bytes(4, "little")
        self._queued: list[int] = []

    def _ready(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        self._go()

    def _go(self) -> None:
        """Hand over results, and take new requests."""
        if self._closed:
            return
        self._scheduled = False
        ring = self._ring
        if self._queued:
            ring.queue(self._queued)
            self._unsubmitted += len(self._queued)
            self._queued = []
        self._unsubmitted -= ring.enter(self._unsubmitted, 0)
        found = ring.reap()
        if self._unsubmitted:
            self._scheduled = True
            self._reactor.call_soon(self._go)
        for tag, result in zip(found[::2], found[1::2], strict=True):
            if signed(result) == 0:
                self._arrived(tag)
            else:  # UBLK_IO_RES_ABORT, or a refusal: it will give this tag no more
                self.live -= 1
