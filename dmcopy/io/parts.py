"""Requests done in parts, for back ends or devices that cannot do them as one."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from dmcopy.io.region import IoRegion
from dmcopy.io.request import CopyIo, Io, Op, Part


class Fan:
    """A copy done with plain reads and writes: all reads together, then all writes."""

    def __init__(self, request: CopyIo, submit: Callable[[Io], None]) -> None:
        self._request = request
        self._submit = submit
        self._left = 0

    def start(self) -> None:
        """Submit the reads."""
        self._begin(Op.READ, self._request.reads(), self._read_done)

    def _begin(self, op: Op, parts: Sequence[Part], notify: Callable[[Io], object]) -> None:
        submit, memory = self._submit, self._request.memory
        self._left = len(parts)
        for index, (region, extents) in enumerate(parts):
            submit(Io(op, region, memory, extents, notify, context=index))

    def _read_done(self, read: Io) -> None:
        request = self._request
        request.error = request.error or read.error
        self._left -= 1
        if self._left:
            return
        try:
            writes = () if request.error else request.writes()
        except BaseException:  # for the reactor, once the copy has ended
            request.error = errno.EIO
            request.notify(request)
            raise
        if writes:
            self._begin(Op.WRITE, writes, self._write_done)
        else:
            request.notify(request)

    def _write_done(self, write: Io) -> None:
        if write.error:
            self._request.write_failed(write.context, write.error)
        self._left -= 1
        if not self._left:
            self._request.notify(self._request)


class FlushFirst:
    """A write with `preflush` done with what there is: a flush, then a write without."""

    def __init__(self, request: Io, submit: Callable[[Io], None]) -> None:
        self._request = request
        self._submit = submit

    def start(self) -> None:
        """Submit the flush."""
        device = self._request.device
        self._submit(Io(Op.FLUSH, IoRegion(device, 0, 0), notify=self._flushed))

    def _flushed(self, flush: Io) -> None:
        request = self._request
        if flush.error:
            self._ended(flush)
            return
        region, extents = request.region, request.extents
        self._submit(Io(Op.WRITE, region, request.memory, extents, self._ended, fua=request.fua))

    def _ended(self, part: Io) -> None:
        self._request.error = part.error
        self._request.notify(self._request)  # type: ignore[misc]
