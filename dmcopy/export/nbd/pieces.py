"""A trim or a write of zeroes of any length, in pieces, one after the other."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from dmcopy.io.reactor import Reactor
from dmcopy.io.region import IoRegion
from dmcopy.io.request import DISCARD, FLUSH, WRITE, WRITE_ZEROES, Io, Memory, Op
from dmcopy.units import PAGE_SIZE, SECTOR_SHIFT

_ZERO_BYTES: Final = 64 << 10
_SECTORS: Final = {WRITE: 1 << 11, WRITE_ZEROES: 1 << 15, DISCARD: 1 << 21}
"""How long a piece may be: a request can be for 4 GiB, and others shall have their turn."""


class Pieces:
    """`op` on `region`: DISCARD, WRITE_ZEROES, or WRITE for zeroes that take their space.

    `ended` is called with an errno or 0. A device that cannot discard has nothing to do: it was a
    hint. On one that cannot zero, zeroes are written. `fua`: it is durable then.
    """

    def __init__(
        self,
        reactor: Reactor,
        op: Op,
        region: IoRegion,
        ended: Callable[[int], object],
        *,
        fua: bool = False,
    ) -> None:
        self._reactor = reactor
        self._op = op
        self._left = region
        self._ended = ended
        self._fua = fua
        self._zeroes: Memory | None = None

    def start(self) -> None:
        """Begin the next piece."""
        piece = self._left.slice(0, min(self._left.count, _SECTORS[self._op]))
        if self._op is not WRITE:
            self._reactor.submit(Io(self._op, piece, notify=self._piece_done))
            return
        if self._zeroes is None:
            self._zeroes = Memory(_ZERO_BYTES // PAGE_SIZE)
        whole, rest = divmod(piece.count << SECTOR_SHIFT, _ZERO_BYTES)
        extents = [(0, _ZERO_BYTES)] * whole + ([(0, rest)] if rest else [])
        self._reactor.submit(Io(WRITE, piece, self._zeroes, extents, self._piece_done))

    def _piece_done(self, io: Io) -> None:
        if io.error == errno.EOPNOTSUPP and self._op is DISCARD:
            self._ended(0)
        elif io.error == errno.EOPNOTSUPP and self._op is WRITE_ZEROES:
            self._op = WRITE
            self.start()
        elif io.error:
            self._ended(io.error)
        elif io.count < self._left.count:
            self._left = self._left.slice(io.count, self._left.count - io.count)
            self.start()
        elif self._fua:
            flush = IoRegion(io.device, 0, 0)
            self._reactor.submit(Io(FLUSH, flush, notify=lambda io: self._ended(io.error)))
        else:
            self._ended(0)
