"""Targets with bugs that the kernel's had, or nearly, each with what was wrong.

Each is a class as a user's own would be, over one of the userspace engine's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from dmcopy.io.request import Io
from dmcopy.targets.base import register
from dmcopy.targets.merge import SnapshotMerge
from dmcopy.targets.mirror import Mirror
from dmcopy.targets.mirror_legs import Legs
from dmcopy.targets.origin import LONGEST_WRITE, SnapshotOrigin
from dmcopy.targets.persistent import MergeRun, PersistentStore
from dmcopy.targets.snapshot import Snapshot


@register
class UnflushedMerge(SnapshotMerge):
    """Exceptions leave the COW before what was merged is durable.

    'dm snapshot: flush merged data before committing metadata', 5.11.
    """

    name: ClassVar[str] = "unflushed-merge"

    async def _flush(self) -> bool:
        return True


class _UnflushedLegs(Legs):
    async def flush(self) -> bool:
        return True


@register
class EarlyClean(Mirror):
    """The log calls a region clean whose writes are not yet durable on every leg.

    What the kernel's log flushes the mirror for (flush_by_core in drivers/md/dm-log.c).
    """

    name: ClassVar[str] = "early-clean"
    legs_class: ClassVar[type[Legs]] = _UnflushedLegs


class _HastyStore(PersistentStore):
    def _write_of_entries(self, first: int, end: int) -> Io:
        write = super()._write_of_entries(first, end)
        write.preflush = False
        return write


@register
class HastySnapshot(Snapshot):
    """An exception is committed before the data that it names is durable.

    The area is written without the flush before it (area_io in drivers/md/dm-snap-persistent.c).
    """

    name: ClassVar[str] = "hasty-snap"

    def make_store(self) -> PersistentStore:
        store = super().make_store()
        assert isinstance(store, PersistentStore)
        store.__class__ = _HastyStore
        return store


@register
class DeafMerge(SnapshotMerge):
    """What is merged is not copied out to the origin's other snapshots, which then change.

    'dm snapshot: trigger exceptions in remaining snapshots during merge', 2.6.33.
    """

    name: ClassVar[str] = "deaf-merge"

    async def _copy_out(self, runs: Sequence[MergeRun]) -> None:
        del runs


@register
class WideOrigin(SnapshotOrigin):
    """Writes are cut at the largest chunk of the snapshots: of smaller ones only the first is kept.

    'dm snapshot: fix corruption with several snapshots of different chunk sizes'; split_io of the
    origin is the smallest since 2.6.31.
    """

    name: ClassVar[str] = "wide-origin"

    def resume(self) -> None:
        super().resume()
        self.max_write_len = LONGEST_WRITE
