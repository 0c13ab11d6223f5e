"""delay: bios wait before they are sent down (drivers/md/dm-delay.c, 6.12)."""

from __future__ import annotations

from collections import deque
from typing import ClassVar

from dmcopy import table as lines
from dmcopy.io.reactor import Timer
from dmcopy.io.request import Op
from dmcopy.table import Delayed, TableLine
from dmcopy.targets.base import REMAPPED, SUBMITTED, Bio, Host, Map, Target, register


@register
class Delay(Target):
    """`delay <device> <offset> <ms> [<device> <offset> <ms> [<device> <offset> <ms>]]`.

    For reads; for writes and discards; for flushes. Classes that are not given are as the one
    before. A suspend sends down what waits; until the resume nothing is delayed.
    """

    value: lines.Delay
    name: ClassVar[str] = "delay"
    version: ClassVar = (1, 4, 0)
    flush_bios = 1
    discard_bios = 1

    def __init__(self, line: TableLine, host: Host) -> None:
        super().__init__(line, host)
        write = self.value.write or self.value.read
        values = (self.value.read, write, self.value.flush or write)
        self._classes = [_Class(value, line, host) for value in values]

    def map(self, bio: Bio) -> Map:
        """Move the bio to the device of its class, now or later."""
        kind = {Op.READ: 0, Op.FLUSH: 2}.get(bio.op, 1)
        return self._classes[kind].map(bio)

    def status(self) -> str:
        """Return how many reads, writes and flushes wait."""
        return " ".join(str(len(one.waiting)) for one in self._classes)

    def presuspend(self) -> None:
        """Send down everything that waits, and delay nothing."""
        for one in self._classes:
            one.hurry()

    def presuspend_undo(self) -> None:
        """Delay again. (The kernel forgets to, until the next resume.)"""
        self.resume()

    def resume(self) -> None:
        """Delay what comes from now on."""
        for one in self._classes:
            one.is_slow = True


class _Class:
    """The bios of one kind: where they go, and which of them wait for when."""

    def __init__(self, value: Delayed, line: TableLine, host: Host) -> None:
        self.waiting: deque[tuple[float, Bio]] = deque()
        self.is_slow = True
        self._seconds = value.milliseconds / 1000
        self._device = host.open(value.device)
        self._shift = value.offset - line.start
        self._reactor = host.reactor
        self._timer: Timer | None = None
        host.use(self._device, value.offset, line.length)

    def map(self, bio: Bio) -> Map:
        bio.device = self._device
        if bio.op != Op.FLUSH:
            bio.sector += self._shift
        if not self._seconds or not self.is_slow:
            return REMAPPED
        self.waiting.append((self._reactor.time() + self._seconds, bio))
        if self._timer is None:
            self._timer = self._reactor.call_later(self._seconds, self._expire)
        return SUBMITTED

    def hurry(self) -> None:
        """Submit everything, and delay no more."""
        self.is_slow = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self.waiting:
            self._reactor.submit(self.waiting.popleft()[1])

    def _expire(self) -> None:
        """Submit what is due, and come again for the next."""
        now = self._reactor.time()
        while self.waiting and self.waiting[0][0] <= now:
            self._reactor.submit(self.waiting.popleft()[1])
        self._timer = None
        if self.waiting:
            self._timer = self._reactor.call_later(self.waiting[0][0] - now, self._expire)
