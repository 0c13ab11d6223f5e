"""The `uring` back end: requests on an io_uring of our own.

Slots own their submission entries: slot k has entries 2k and 2k+1, and user_data is the index of
the entry. A copy to one destination is a read linked to a write whose read leaves no completion
when it succeeds (IOSQE_CQE_SKIP_SUCCESS): one completion per copy, which halves the work of the
kernel and of the interpreter. Whatever is unusual (a short transfer, an interrupted call, an
operation that a ring cannot do) is done over by plain system calls on a thread, so that there is
one slow path, not many.
"""

from __future__ import annotations

import errno
import os
import select
import time
from array import array
from collections import deque
from collections.abc import Sequence

from dmcopy.io.parts import Fan, FlushFirst
from dmcopy.io.poller import Poller
from dmcopy.io.request import FLUSH, WRITE, CopyIo, Extent, Io, ListCopyIo, Memory, Request
from dmcopy.io.ring import (
    FSYNC_DATASYNC,
    LINK,
    OP_FSYNC,
    OP_POLL_ADD,
    OP_READ,
    OP_READ_FIXED,
    OP_READV,
    OP_WRITE,
    OP_WRITE_FIXED,
    OP_WRITEV,
    PAIR,
    RWF_DSYNC,
    SKIP_SUCCESS,
    SQE,
    SQE_SIZE,
    Ring,
    signed,
)
from dmcopy.io.threads import WorkerPool, perform

_LINKED_READ = OP_READ | (LINK | SKIP_SUCCESS) << 8
_LINKED_READV = OP_READV | (LINK | SKIP_SUCCESS) << 8
_LINKED_READ_FIXED = OP_READ_FIXED | (LINK | SKIP_SUCCESS) << 8
_DO_OVER = frozenset({errno.EINTR, errno.EAGAIN, errno.ECANCELED})
_POLL_SLOT = 0
BURST = 16
"""From this many entries on they are handed over: the kernel begins while others are still made."""


class UringBackend:
    """`IoBackend` over a `Ring` of `slots` requests; more than that wait their turn."""

    name = "uring"

    def __init__(self, poller: Poller, *, inline: bool = False, slots: int = 256) -> None:
        self._poller = poller
        self._workers = WorkerPool(poller.wake)
        self._workers.sleeping = True
        self._inline = inline
        self._alone: Request | None = None
        # Slot 0 is the poller's: a poll of its descriptor that ends every wait of the ring.
        self._poll = Io(FLUSH, (poller, 0, 0))  # type: ignore[arg-type]
        self._poll.bytes = -1
        self._armed = False
        self._bell: int | None = None
        self._pinned: Memory | None = None
        self._requests: list[Request] = [self._poll] * slots
        self._vectors: dict[int, array[int]] = {}
        self._free = list(range(slots - 1, _POLL_SLOT, -1))
        self._slots = len(self._free)
        self._backlog: deque[Request] = deque()
        self._queued: list[int] = []
        self._unsubmitted = 0
        self._finished: list[Request] = []
        self.time = time.monotonic
        self._ring = Ring(2 * slots)

    def fileno(self) -> int:
        """An eventfd that rings at every completion, made at the first call.

        It is for a reactor that nests this one. Nothing is done inline any more:
        what is kept for `poll` would wake no one.
        """
        if self._bell is None:
            self._inline = False
            self._start_alone()
            self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._ring.register_eventfd(self._bell)
        return self._bell

    def submit(self, request: Request) -> None:
        """Put a request on the ring, or keep it for `poll` when it may be done inline."""
        if self._inline:
            if self._is_idle():
                self._alone = request
                return
            self._start_alone()
        if not self._free:
            self._backlog.append(request)
            return
        self._start(request)
        if len(self._queued) >= BURST:
            try:
                self._hand_over()
            except OSError:  # `poll` says so: this request has nothing to do with it
                pass

    def pin(self, memory: Memory) -> None:
        """See `Reactor.pin`. One memory is pinned at a time; huge pages would gain nothing."""
        if self._pinned is not None or memory.is_huge:
            return
        if self._ring.register_buffer(memory.address, memory.size_bytes):
            self._pinned = memory

    def unpin(self, memory: Memory) -> None:
        if self._pinned is memory:
            self._pinned = None
            self._ring.unregister_buffer()

    def poll(self, timeout: float | None) -> list[Request]:
        if (alone := self._alone) is not None:
            perform(alone)  # a Ctrl-C may come out of it: it is then done over
            self._alone = None
            return [alone]
        if not self._armed:
            self._arm()
        if self._bell is not None:
            self._drain(self._bell)
        if self._finished:
            timeout = 0
        self._hand_over(timeout != 0, timeout)
        found = self._ring.reap()
        if found:
            self._complete(found)
        while self._backlog and self._free:
            self._start(self._backlog.popleft())
        finished, self._finished = self._finished, []
        return finished

    def close(self) -> None:
        """Close the ring and end the threads."""
        self._workers.close()
        self._ring.close()
        if self._bell is not None:
            os.close(self._bell)

    @staticmethod
    def _drain(event: int) -> None:
        try:
            os.eventfd_read(event)
        except BlockingIOError:
            pass

    def _hand_over(self, wait: bool = False, timeout: float | None = None) -> None:
        """Give the kernel the entries that are made; see `Ring.enter`."""
        if self._queued:
            self._ring.queue(self._queued)
            self._unsubmitted += len(self._queued)
            self._queued = []
        self._unsubmitted -= self._ring.enter(self._unsubmitted, wait, timeout)

    def _is_idle(self) -> bool:
        return (
            self._alone is None
            and len(self._free) == self._slots
            and not self._workers.in_flight
            and not self._finished
        )

    def _start_alone(self) -> None:
        if self._alone is not None:
            alone, self._alone = self._alone, None
            self._start(alone)

    def _complete(self, found: list[int]) -> None:
        requests, free, finished = self._requests, self._free, self._finished
        for tag, result in zip(found[::2], found[1::2], strict=True):
            slot = tag >> 1
            request = requests[slot]
            if result == request.bytes:
                free.append(slot)
                finished.append(request)
            else:
                self._complete_odd(slot, tag & 1, request, signed(result))
        if self._vectors:
            for slot in self._vectors.keys() & set(free):
                del self._vectors[slot]

    def _complete_odd(self, slot: int, second: int, request: Request, result: int) -> None:
        """Take a completion that is no plain success."""
        if slot == _POLL_SLOT:
            self._armed = False
            self._poller.wait(0)
            self._finished += self._workers.collect()
            return
        self._free.append(slot)
        if result >= 0 or -result in _DO_OVER:
            self._workers.submit(request)
            return
        if second and isinstance(request, CopyIo):
            request.write_failed(0, -result)
        else:
            request.error = -result
        self._finished.append(request)

    def _arm(self) -> None:
        SQE.pack_into(
            self._ring.sqes, 0, OP_POLL_ADD, 0, 0, self._poller.fileno(), 0, 0, 0, select.EPOLLIN, 0
        )
        self._queued.append(0)
        self._armed = True

    def _start(self, request: Request) -> None:
        try:
            if isinstance(request, CopyIo):
                self._start_copy(request)
            elif request.preflush:
                # Not as a linked pair: a fsync that fails does not break its link (io_fsync in
                # io_uring/sync.c sets the result and not REQ_F_FAIL; measured on 6.18).
                FlushFirst(request, self.submit).start()
            elif request.op <= FLUSH:
                self._start_io(request)
            else:
                self._workers.submit(request)
        except Exception as error:  # such as a device that was closed meanwhile
            request.error = getattr(error, "errno", None) or errno.EBADF
            self._finished.append(request)

    def _start_copy(self, request: CopyIo) -> None:
        dests = request.dests
        if len(dests) != 1 or isinstance(request, ListCopyIo):
            Fan(request, self.submit).start()
            return
        device, sector, _ = request.source
        to, to_sector, _ = dests[0]
        fd, to_fd = device.fileno(), to.fileno()
        slot = self._free.pop()
        entry = 2 * slot
        self._requests[slot] = request
        if len(request.extents) == 1:
            if request.memory is self._pinned:
                read, write = _LINKED_READ_FIXED, OP_WRITE_FIXED
            else:
                read, write = _LINKED_READ, OP_WRITE
            address, length = request.memory.address + request.extents[0][0], request.bytes
        else:
            read, write = _LINKED_READV, OP_WRITEV
            address, length = self._vector(slot, request.memory, request.extents)
        # fmt: off
        PAIR.pack_into(
            self._ring.sqes, entry * SQE_SIZE,
            fd << 32 | read, sector << 9, address, length, entry,
            to_fd << 32 | write, to_sector << 9, address, length, entry + 1,
        )
        # fmt: on
        self._queued += (entry, entry + 1)

    def _start_io(self, request: Io) -> None:
        fd = request.device.fileno()
        slot = self._free.pop()
        self._requests[slot] = request
        op, memory, extents = request.op, request.memory, request.extents
        if op == FLUSH:
            # Offset and length 0 are the whole file; an offset alone would be a range of one byte.
            code, offset, address, length, flags = OP_FSYNC, 0, 0, 0, FSYNC_DATASYNC
        else:
            assert memory is not None
            offset, flags = request.sector << 9, RWF_DSYNC if request.fua else 0
            if len(extents) == 1:
                code = OP_WRITE if op == WRITE else OP_READ
                address, length = memory.address + extents[0][0], request.bytes
            else:
                code = OP_WRITEV if op == WRITE else OP_READV
                address, length = self._vector(slot, memory, extents)
        entry = 2 * slot
        SQE.pack_into(
            self._ring.sqes, entry * SQE_SIZE,
            code, 0, 0, fd, offset, address, length, flags, entry,
        )  # fmt: skip
        self._queued.append(entry)

    def _vector(self, slot: int, memory: Memory, extents: Sequence[Extent]) -> tuple[int, int]:
        """Return address and length of an iovec array that lives as long as the request."""
        vector = array("Q")
        for start, length in extents:
            vector.extend((memory.address + start, length))
        self._vectors[slot] = vector
        return vector.buffer_info()[0], len(extents)
