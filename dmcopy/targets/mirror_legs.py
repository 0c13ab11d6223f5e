"""The legs of a mirror: which of them have failed and how, and which one is read.

Rules: fail_mirror, choose_mirror and device_status_char in drivers/md/dm-raid1.c, 6.1 and 6.12.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device, IoRegion
from dmcopy.io.request import Io, Op
from dmcopy.targets.work import Requests


class LegError(enum.IntEnum):
    """What a leg has failed at; the lowest number is the worst, and the one that is shown."""

    FLUSH = 0
    WRITE = 1
    SYNC = 2
    READ = 3


LETTERS: Final = {
    LegError.FLUSH: "F",
    LegError.WRITE: "D",
    LegError.SYNC: "S",
    LegError.READ: "R",
}


class Leg:
    """A device, where on it the mirror begins, and its errors."""

    def __init__(self, device: Device, offset: int) -> None:
        self.device = device
        self.offset = offset
        self.errors: set[LegError] = set()

    def __repr__(self) -> str:
        return f"<Leg {self.device.path} {self.letter}>"

    @property
    def ok(self) -> bool:
        """Whether nothing has failed on it."""
        return not self.errors

    @property
    def letter(self) -> str:
        """The letter of its health in a status line."""
        return LETTERS[min(self.errors)] if self.errors else "A"

    @property
    def whole(self) -> IoRegion:
        """The region of a flush, which has no sectors."""
        return IoRegion(self.device, 0, 0)

    def region(self, sector: int, count: int) -> IoRegion:
        """Return a part of the mirror, as it lies on this leg."""
        return IoRegion(self.device, self.offset + sector, count)


class Legs:
    """All legs of a mirror, and the default one, from which a resync copies to the others.

    `event` is called, outside of whatever found an error, when it is news: with `handle_errors`,
    and once for each kind of error of each leg.

    Attributes:
        default: the leg that counts where the legs are not in sync.
        in_sync: whether all of them were in sync once, and no write has failed since.
        any_failed: whether anything has failed since then.
    """

    def __init__(
        self,
        reactor: Reactor,
        legs: Sequence[Leg],
        event: Callable[[], object],
        *,
        handle_errors: bool,
        keep_log: bool,
    ) -> None:
        self._reactor = reactor
        self._legs = tuple(legs)
        self._event = event
        self._event_is_due = False
        self._handle_errors = handle_errors
        self._keep_log = keep_log
        self.default = self._legs[0]
        self.in_sync = False
        self.any_failed = False

    def __len__(self) -> int:
        return len(self._legs)

    def __iter__(self) -> Iterator[Leg]:
        return iter(self._legs)

    @property
    def others(self) -> list[Leg]:
        """Every leg but the default one."""
        return [leg for leg in self._legs if leg is not self.default]

    @property
    def first_ok(self) -> Leg | None:
        """The first leg without errors."""
        return next((leg for leg in self._legs if leg.ok), None)

    @property
    def letters(self) -> str:
        return "".join(leg.letter for leg in self._legs)

    def choose(self) -> Leg | None:
        """Return the leg to read an in-sync region from: the default one, or one before it.

        There is no balancing: another is taken only when that one has failed. A class of your own
        may return any leg that is `ok`; None says that the read must fail.
        """
        if self.default.ok:
            return self.default
        place = self._legs.index(self.default)
        order = (self._legs[place - step] for step in range(1, len(self._legs)))
        return next((leg for leg in order if leg.ok), None)

    def fail(self, leg: Leg, error: LegError) -> None:
        """Note that something failed on a leg; if it is the default one, another takes over.

        Not while the legs are out of sync, unless `keep_log` says so: to read a leg that fails is
        better than to read one that was never complete.
        """
        self.any_failed = True
        known = error in leg.errors
        leg.errors.add(error)
        if known or not self._handle_errors:
            return
        if leg is self.default and (self.in_sync or self._keep_log):
            self.default = self.first_ok or leg
        if not self._event_is_due:  # one event for all failures that are found together
            self._event_is_due = True
            self._reactor.call_soon(self._raise_event)

    async def flush(self) -> bool:
        """Flush every leg. Returns whether all of them did."""
        flushes = [Io(Op.FLUSH, leg.whole) for leg in self._legs]
        errors = await Requests(self._reactor, flushes)
        for leg, error in zip(self._legs, errors, strict=True):
            if error:
                self.fail(leg, LegError.FLUSH)
        return not any(errors)

    def sync_completed(self) -> None:
        """All regions are in sync: forget the errors."""
        self.in_sync = True
        self.any_failed = False
        for leg in self._legs:
            leg.errors.clear()

    def _raise_event(self) -> None:
        self._event_is_due = False
        self._event()
