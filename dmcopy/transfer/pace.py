"""A limit on how much is begun in a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dmcopy.io.reactor import Reactor
from dmcopy.units import SECTOR_SHIFT

_CREDIT_SECONDS: Final = 0.1
"""How much unused time may be made up for: timers come late, disks are uneven."""


class Pace:
    """Lets at most `limit` bytes a second begin; 0: as many as there are.

    `resume` is called when the next may begin after `may_begin` has said no.
    """

    def __init__(self, reactor: Reactor, limit: int, resume: Callable[[], object]) -> None:
        self._reactor = reactor
        self._limit = limit
        self._resume = resume
        self._due = reactor.time()
        self._waiting = False

    def may_begin(self) -> bool:
        """Whether something may begin now; if not, `resume` is called when it may."""
        if not self._limit:
            return True
        left = self._due - self._reactor.time()
        if left > 0 and not self._waiting:
            self._waiting = True
            self._reactor.call_later(left, self._wake)
        return left <= 0

    def began(self, sectors: int) -> None:
        """Book what has begun."""
        if self._limit:
            earliest = self._reactor.time() - _CREDIT_SECONDS
            self._due = max(self._due, earliest) + (sectors << SECTOR_SHIFT) / self._limit

    def _wake(self) -> None:
        self._waiting = False
        self._resume()
