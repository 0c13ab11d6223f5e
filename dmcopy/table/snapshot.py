"""snapshot, snapshot-origin and snapshot-merge.

Rules: drivers/md/dm-snap.c, dm-exception-store.c, dm-snap-persistent.c, read in 6.1 and 6.12 and
measured on both.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

from dmcopy.table.record import device_field, group_field, number_field, word_field
from dmcopy.table.target import Target, register

MAX_CHUNK_SECTORS = ((1 << 31) - 1) >> 9
FEATURES = {"discard_zeroes_cow": 0, "discard_passdown_origin": 0}


@register
@dataclass(frozen=True, slots=True)
class SnapshotOrigin(Target):
    """`snapshot-origin <origin>`: writes are copied out to every snapshot of `origin` first."""

    name: ClassVar[str] = "snapshot-origin"

    origin: str = device_field()

    def describe(self) -> str:
        return f"is {self.origin}; a write first copies old data to its snapshots"


@dataclass(frozen=True, slots=True)
class _Snapshot(Target):
    """What snapshot and snapshot-merge have in common: the words."""

    origin: str = device_field()
    cow: str = device_field()
    store: str = word_field()
    chunk_size: int = number_field(0, MAX_CHUNK_SECTORS, power=True)
    features: tuple[str, ...] | None = group_field(2, known=FEATURES, optional=True)

    def _check(self, length: int) -> None:
        del length
        self._check_store()
        if self.cow == self.origin:
            raise self._wrong("cow", self.cow, "must be another device than the origin")
        features = [feature.lower() for feature in self.features or ()]
        if "discard_passdown_origin" in features and "discard_zeroes_cow" not in features:
            rule = "needs discard_zeroes_cow as well"
            raise self._wrong("feature", "discard_passdown_origin", rule)

    def _check_store(self) -> None:
        # dm_exception_store_create looks at the first letter only; persistent_ctr wants an O, if
        # anything, after a P; transient_ctr ignores what follows an N.
        letters = self.store.upper()
        if letters[0] not in "PN":
            raise self._wrong("store", self.store, "must be P, PO or N")
        if letters[0] == "P" and len(letters) > 1 and letters[1] != "O":
            raise self._wrong("store", self.store, "must be P or PO: only O may follow a P")
        if letters[0] == "N" and not self.chunk_size:
            rule = "must be set: store N has no default (for P, 0 means 32)"
            raise self._wrong("chunk_size", self.chunk_size, rule)

    def canonical(self) -> Self:
        """Return the value as the kernel would echo it: P, PO or N, and features in order."""
        value = Target.canonical(self)
        letters = self.store.upper()
        store = letters[0] if letters[0] == "N" else letters[:2]
        return dataclasses.replace(value, store=store)

    @property
    def persistent(self) -> bool:
        """Whether the exceptions are on disk and survive the device."""
        return self.store[:1].upper() == "P"


@register
@dataclass(frozen=True, slots=True)
class Snapshot(_Snapshot):
    """`snapshot <origin> <cow> <P|PO|N> <chunk_size> [<#features> <feature>...]`.

    `store`: P keeps the exceptions on disk, PO too and reports Overflow, N keeps them in memory;
    case does not matter. `chunk_size` is in sectors: a power of two up to 2097152 and a multiple of
    both devices' logical blocks; 0 means the default, 32 sectors, for P only. A store that is
    already on the COW device overrides it. `features`: discard_zeroes_cow and
    discard_passdown_origin, the latter only with the former.
    """

    name: ClassVar[str] = "snapshot"

    def describe(self) -> str:
        size = f"{self.chunk_size} sectors" if self.chunk_size else "the default size, 32 sectors"
        kept = "on disk" if self.persistent else "in memory only"
        return (
            f"is a snapshot of {self.origin}: what changes goes to {self.cow} in chunks of {size}, "
            f"and the list of chunks is kept {kept}"
        )


@register
@dataclass(frozen=True, slots=True)
class SnapshotMerge(_Snapshot):
    """`snapshot-merge <origin> <cow> <P|PO> <chunk_size> [<#features> <feature>...]`.

    The words of `snapshot`; a store N cannot be merged (snapshot_merge_resume in dm-snap.c).
    """

    name: ClassVar[str] = "snapshot-merge"

    def _check(self, length: int) -> None:
        _Snapshot._check(self, length)
        if not self.persistent:
            raise self._wrong("store", self.store, "must be P or PO: only those can be merged")

    def describe(self) -> str:
        return f"is {self.origin}, into which the chunks of snapshot store {self.cow} are merged"
