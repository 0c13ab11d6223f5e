"""What a transfer tells while it goes on: a stream of small values, for whoever shows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """Any of the events below."""


@dataclass(frozen=True)
class Started(Event):
    """The copy begins. `sectors` are to be copied, `already` of them an earlier run has done."""

    source: str
    dests: tuple[str, ...]
    sectors: int
    already: int


@dataclass(frozen=True)
class Progress(Event):
    """How far it is: `sectors` of `total` are settled, written or known to be bad.

    `written`: sectors written to each destination. `seconds` since the phase began. `phase` is
    copy or verify.
    """

    phase: str
    sectors: int
    total: int
    written: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class ReadFailed(Event):
    """Sectors of the source, from `sector` of the device on, cannot be read."""

    path: str
    sector: int
    count: int
    errno: int


@dataclass(frozen=True)
class WriteFailed(Event):
    """Sectors of a destination, from `sector` of the device on, cannot be written."""

    path: str
    sector: int
    count: int
    errno: int


@dataclass(frozen=True)
class Dropped(Event):
    """Nothing more is written to this destination. `cause` is write or flush."""

    path: str
    cause: str
    errno: int


@dataclass(frozen=True)
class MapFailed(Event):
    """The map file could not be saved; the copy goes on, with the map as it was."""

    path: str
    message: str


@dataclass(frozen=True)
class Mismatch(Event):
    """What was read back from a destination differs from the source."""

    path: str
    sector: int
    count: int


Observer = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Observe nothing."""
