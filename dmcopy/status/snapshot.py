"""The status of snapshot and snapshot-merge: snapshot_status in drivers/md/dm-snap.c."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from dmcopy.status.base import Status, register
from dmcopy.table.record import FieldKind, Ratio, Spec
from dmcopy.table.words import Words

INVALID = "Invalid"
MERGE_FAILED = "Merge failed"
OVERFLOW = "Overflow"
UNKNOWN = "Unknown"
_STATES = {
    INVALID: "the snapshot is lost: its store filled up or could not be read or written",
    MERGE_FAILED: "merging stopped at an error; to continue, remove and create the device",
    OVERFLOW: "the store is full: writes to the snapshot fail, what it has can still be read",
    UNKNOWN: "",
}


@register
@dataclass(frozen=True, slots=True)
class SnapshotStatus(Status):
    """One of five forms: a state in words, or how full the store is.

    `used`: sectors allocated (data and metadata) of the whole COW device. `metadata`: the sectors
    of them that hold metadata; kernels before target version 1.10 do not say. When both numbers are
    equal, nothing is stored, or all is merged: a merge raises no event when it is done.
    """

    name: ClassVar[str] = "snapshot"

    state: str = ""
    used: Ratio | None = None
    metadata: int | None = None

    @classmethod
    def take(cls, words: Words) -> Self:
        first = words.peek() or ""
        if first == "Merge":
            return cls(" ".join(words.take(2, "state")))
        if first in _STATES:
            return cls(words.word("state"))
        used = Spec(FieldKind.RATIO).take(words, "used")
        return cls("", used, words.number("metadata") if len(words) else None)

    def words(self) -> list[str]:
        if self.used is None:
            return self.state.split()
        return [str(self.used)] if self.metadata is None else [str(self.used), str(self.metadata)]

    @property
    def valid(self) -> bool:
        """Whether the snapshot can still be read."""
        return self.state != INVALID

    @property
    def empty(self) -> bool:
        """Whether nothing is stored: nothing changed yet, or everything is merged."""
        return self.used is not None and self.used.used == self.metadata

    @property
    def percent(self) -> float | None:
        """How full the COW device is, in percent, counting its metadata; None when not said."""
        return None if self.used is None else self.used.percent

    @property
    def trouble(self) -> str:
        return _STATES.get(self.state, "")


@register
@dataclass(frozen=True, slots=True)
class SnapshotMergeStatus(SnapshotStatus):
    """The status of a merging snapshot: the numbers shrink until they are equal."""

    name: ClassVar[str] = "snapshot-merge"
