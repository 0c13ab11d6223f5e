"""Requests in parts: one callback when the last has ended, and requests that have to be done so."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from functools import partial

from dmcopy.io.region import IoRegion
from dmcopy.io.request import CopyIo, Io, Op, Part


class Countdown:
    """Calls `notify()` when `count` things, one at least, have ended.

    `ended` can be the callback of a request; what it is called with is not looked at.
    """

    __slots__ = ("_left", "_notify")

    def __init__(self, count: int, notify: Callable[[], object]) -> None:
        self._left = count
        self._notify = notify

    def ended(self, _thing: object = None) -> None:
        self._left -= 1
        if not self._left:
            notify = self._notify
            del self._notify  # it may lead back here: nothing is left for the garbage collector
            notify()


def submit_all(
    submit: Callable[[Io], object], requests: Sequence[Io], notify: Callable[[Sequence[Io]], object]
) -> None:
    """Submit requests, one at least; `notify(requests)` when all have ended and have an `error`."""
    ended = Countdown(len(requests), partial(notify, requests)).ended
    for request in requests:
        request.notify = ended
        submit(request)


def first_error(requests: Sequence[Io]) -> int:
    """Return the errno of the first request that failed, or 0."""
    return next((request.error for request in requests if request.error), 0)


class Fan:
    """A copy done with plain reads and writes: all reads together, then all writes."""

    def __init__(self, request: CopyIo, submit: Callable[[Io], None]) -> None:
        self._request = request
        self._submit = submit

    def start(self) -> None:
        submit_all(self._submit, self._each(Op.READ, self._request.reads()), self._read)

    def _each(self, op: Op, parts: Sequence[Part]) -> list[Io]:
        memory = self._request.memory
        return [Io(op, region, memory, extents) for region, extents in parts]

    def _read(self, reads: Sequence[Io]) -> None:
        request = self._request
        request.error = first_error(reads)
        try:
            writes = [] if request.error else self._each(Op.WRITE, request.writes())
        except BaseException:  # for the reactor, once the copy has ended
            request.error = errno.EIO
            request.notify(request)
            raise
        if writes:
            submit_all(self._submit, writes, self._written)
        else:
            request.notify(request)

    def _written(self, writes: Sequence[Io]) -> None:
        for index, write in enumerate(writes):
            if write.error:
                self._request.write_failed(index, write.error)
        self._request.notify(self._request)


class FlushFirst:
    """A write with `preflush` done with what there is: a flush, then a write without.

    Where the device has no volatile cache now there is nothing to flush, as in the kernel, which
    drops REQ_PREFLUSH there (submit_bio_noacct in block/blk-core.c).
    """

    def __init__(self, request: Io, submit: Callable[[Io], None]) -> None:
        self._request = request
        self._submit = submit

    def start(self) -> None:
        """Submit the flush, or the write where none is needed."""
        device = self._request.device
        if device.write_through:
            self._write()
        else:
            self._submit(Io(Op.FLUSH, IoRegion(device, 0, 0), notify=self._flushed))

    def _flushed(self, flush: Io) -> None:
        if flush.error:
            self._ended(flush)
        else:
            self._write()

    def _write(self) -> None:
        request = self._request
        region, extents = request.region, request.extents
        self._submit(Io(Op.WRITE, region, request.memory, extents, self._ended, fua=request.fua))

    def _ended(self, part: Io) -> None:
        self._request.error = part.error
        self._request.notify(self._request)  # type: ignore[misc]
