"""What a transfer reports while it runs: a stream of small values, for observers.

What an observer raises is logged, and it is not called again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Started(NamedTuple):
    """The copy begins. `sectors` are to be copied, `already` of them an earlier run has done."""

    source: str
    dests: tuple[str, ...]
    sectors: int
    already: int


class Overwrites(NamedTuple):
    """What there is on a destination, and which device it is, before the first write."""

    path: str
    what: str


class Progress(NamedTuple):
    """How far it is: `sectors` of `total` are settled, written or known to be bad.

    `written`: sectors written to each destination. `seconds` since the phase began. `phase` is
    copy or verify. `already`: those that were settled when it began.
    """

    phase: str
    sectors: int
    total: int
    written: tuple[int, ...]
    seconds: float
    already: int = 0

    @property
    def rate(self) -> float:
        """Sectors a second since the phase began; 0 as long as nothing is known."""
        return (self.sectors - self.already) / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at this rate; None as long as nothing is known."""
        left = self.total - self.sectors
        if left <= 0:
            return 0.0
        return left / self.rate if self.rate > 0 else None


class ReadFailed(NamedTuple):
    """Sectors of the source, from `sector` of the device on, cannot be read."""

    path: str
    sector: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which is not used
    errno: int


class WriteFailed(NamedTuple):
    """Sectors of a destination, from `sector` of the device on, cannot be written."""

    path: str
    sector: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which is not used
    errno: int


class Dropped(NamedTuple):
    """Nothing more is written to this destination. `cause` is write or flush."""

    path: str
    cause: str
    errno: int


class MapFailed(NamedTuple):
    """The map file could not be saved; the copy continues, with the map as it was."""

    path: str
    message: str


class Mismatch(NamedTuple):
    """What was read back from a destination differs from the source."""

    path: str
    sector: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which is not used


TransferEvent = (
    Started | Overwrites | Progress | ReadFailed | WriteFailed | Dropped | MapFailed | Mismatch
)
TransferObserver = Callable[[TransferEvent], None]


def ignore(event: TransferEvent) -> None:
    """Observe nothing."""
