"""Making what was written durable, and only then calling it done.

    collect what was written → flush each destination → note it as durable → save the map

A write that ends while a flush is under way may or may not be covered by it, so it counts only at
the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from dmcopy.io.parts import Countdown
from dmcopy.io.reactor import Reactor, Timer
from dmcopy.io.request import Io, Op
from dmcopy.ranges import RangeSet
from dmcopy.transfer.destination import Destination

INTERVAL_SECONDS: Final = 1.0
SHARE: Final = 10
"""A checkpoint takes at most about one part in SHARE of the time."""


class Durability:
    """Flushes the destinations: once with `flush`, and with `start` about once a second.

    `saved()` is called after each flush of all; `dropped(destination, errno)` when one fails.
    """

    def __init__(
        self,
        reactor: Reactor,
        dests: Sequence[Destination],
        saved: Callable[[], object],
        dropped: Callable[[Destination, int], object],
    ) -> None:
        self._reactor = reactor
        self._dests = dests
        self._saved = saved
        self._dropped = dropped
        self._flushing = False
        self._began = 0.0
        self._interval = INTERVAL_SECONDS
        self._timer: Timer | None = None
        self._then: Callable[[], object] | None = None

    def start(self, interval: float = INTERVAL_SECONDS) -> None:
        """Flush and save every `interval` seconds, or less often where that takes long."""
        self._interval = interval
        self._wait(interval)

    def stop(self) -> None:
        """Begin no flush any more; one that is under way continues."""
        if self._timer is not None:
            self._timer.cancel()

    def flush(self, then: Callable[[], object]) -> None:
        """Stop the rounds, flush everything written so far, then call `then`."""
        self.stop()
        self._then = then
        if not self._flushing:
            self._begin()

    def _tick(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._began = self._reactor.time()
        todo = [dest for dest in self._dests if dest.unflushed and not dest.error]
        self._flushing = True
        flushes = Countdown(len(todo) or 1, self._flushed)
        for dest in todo:
            dest.unflushed = False
            self._submit(dest, dest.written.copy(), flushes)
        if not todo:
            self._reactor.call_soon(flushes.ended)

    def _submit(self, dest: Destination, covered: RangeSet, flushes: Countdown) -> None:
        def ended(flush: Io) -> None:
            if flush.error:
                self._dropped(dest, flush.error)
            else:
                dest.flushed(covered)
            flushes.ended()

        self._reactor.submit(Io(Op.FLUSH, dest.region, notify=ended))

    def _flushed(self) -> None:
        self._flushing = False
        if self._then is not None and any(d.unflushed and not d.error for d in self._dests):
            self._begin()  # this round began before the last write had ended
            return
        self._saved()
        if self._then is not None:
            self._then()
        else:
            self._wait(max(self._interval, SHARE * (self._reactor.time() - self._began)))

    def _wait(self, seconds: float) -> None:
        self._timer = self._reactor.call_later(seconds, self._tick)
