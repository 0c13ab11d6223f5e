"""The devices of one snapshot, their tables, and the steps that make, merge and remove them.

As LVM lays them out, for an origin `data` and its snapshot `snap`:

    data        snapshot-origin over data-real; a file system mounted on it stays mounted
    data-real   the table that `data` had before
    snap        snapshot of data-real, with its exceptions on snap-cow
    snap-cow    linear, over the COW device: so that it can grow

An origin that was no mapped device has no `-real`: the new device `sdb-origin` is used instead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from dmcopy.table import Snapshot, SnapshotMerge, SnapshotOrigin, Table, Zero
from dmcopy.workflows.step import Step


@dataclass(frozen=True, slots=True)
class SnapshotLayout:
    """The names and tables of a snapshot; every path in it outlives a reboot.

    Attributes:
        name: the snapshot's device.
        origin: the mapped device through which the origin is written; "" where there is none.
        real: the hidden device with the origin's own table, "" for an origin that was not mapped.
        base: the path of what origin and snapshot stand on: of `real`, or the device itself.
        plain: the origin's own table, "" for one that was not mapped.
        length: sectors.
        cow: the mapped device of the exceptions, "" where the COW device is used directly.
        cow_path: the path of the COW as the snapshot's table has it.
        parts: the table of `cow`.
        files: files under the COW that were attached for it.
        store, chunk_size, features: as in the table of a snapshot.
    """

    name: str
    origin: str
    real: str
    base: str
    plain: str
    length: int
    cow: str
    cow_path: str
    parts: str
    store: str
    chunk_size: int
    features: tuple[str, ...] | None = None
    files: tuple[str, ...] = ()

    @property
    def devices(self) -> tuple[str, ...]:
        """Return the names of its mapped devices."""
        return tuple(filter(None, [self.origin, self.real, self.name, self.cow]))

    @property
    def store_device(self) -> str:
        """The device or file that holds the beginning of the exception store."""
        return Table.read(self.parts).devices[0] if self.parts else self.cow_path

    @property
    def placeholder(self) -> str:
        """The table of the hidden device until the origin is suspended and it gets its own."""
        return str(Table.of(self.length, Zero()))

    @property
    def origin_table(self) -> str:
        return str(Table.of(self.length, SnapshotOrigin(self.base)))

    @property
    def snapshot_table(self) -> str:
        return str(Table.of(self.length, Snapshot(*self._words)))

    @property
    def merge_table(self) -> str:
        """The table of the origin while the snapshot is merged into it."""
        return str(Table.of(self.length, SnapshotMerge(*self._words)))

    @property
    def _words(self) -> tuple[str, str, str, int, tuple[str, ...] | None]:
        return (self.base, self.cow_path, self.store, self.chunk_size, self.features)


def take(layout: SnapshotLayout, origin_now: str, *, joining: bool, wipe: int) -> Iterator[Step]:
    """Yield the steps that take a snapshot. `origin_now`: the origin's active table, "" if none.

    `wipe`: sectors at the beginning of the COW; 0 to continue the store that is there.

    Everything is loaded before anything is suspended; between the suspend, which freezes a file
    system, and the last resume nothing but three resumes happens. The origin is suspended also when
    it has snapshots already: where it cuts writes is computed in its resume (the smallest chunk of
    its snapshots, origin_resume in drivers/md/dm-snap.c).
    """
    yield from (Step("attach", file) for file in layout.files)
    if wipe:
        yield Step("wipe", layout.store_device, size=wipe)
    yield Step("create", layout.cow, table=layout.parts)
    if not origin_now:
        yield Step("create", layout.name, table=layout.snapshot_table)
        yield Step("create", layout.origin, table=layout.origin_table)
        return
    if not joining:
        yield from _make_real(layout)
    yield Step("create", layout.name)
    yield Step("load", layout.name, table=layout.snapshot_table)
    if not joining:
        yield Step("load", layout.origin, table=layout.origin_table)
    yield Step("suspend", layout.origin)
    if not joining:
        yield Step("resume", layout.real, joined=True)
    yield Step("resume", layout.name, joined=True)
    yield Step("resume", layout.origin, before=origin_now, joined=True)


def drop(layout: SnapshotLayout, origin_now: str, *, last: bool) -> Iterator[Step]:
    """Yield the steps that remove a snapshot; with the `last` one, the origin is as before.

    Once the snapshot is gone it cannot come back: writes to the origin are not seen any more.
    """
    restored = last and bool(layout.real)
    if restored:
        yield Step("load", layout.origin, table=layout.plain)
    yield Step("remove", layout.name, before=layout.snapshot_table, final=True)
    if restored or (layout.origin and not last):
        yield from _swap_origin(layout, origin_now, last=last)
    elif layout.origin:
        yield Step("retire", layout.origin, before=origin_now)
    yield from _remove_cow(layout)


def merge(layout: SnapshotLayout, origin_now: str) -> Iterator[Step]:
    """Yield the steps that begin to merge: the exceptions go over to the origin's new table.

    The snapshot must be suspended when the origin is resumed (snapshot_preresume in dm-snap.c).
    """
    yield Step("load", layout.origin, table=layout.merge_table)
    yield Step("suspend", layout.origin)
    yield Step("suspend", layout.name, joined=True)
    yield Step("resume", layout.origin, before=origin_now, joined=True, final=True)
    yield Step("remove", layout.name, before=layout.snapshot_table)


def merge_again(layout: SnapshotLayout, origin_now: str, there: Collection[str]) -> Iterator[Step]:
    """Yield the steps that continue a merge whose devices a reboot or another program has removed.

    `origin_now`: "" for no device; `there`: which of the others are.
    """
    yield from (Step("attach", file) for file in layout.files)
    if layout.cow and layout.cow not in there:
        yield Step("create", layout.cow, table=layout.parts)
    make_real = bool(layout.real) and layout.real not in there
    if not origin_now:
        if make_real:
            yield Step("create", layout.real, table=layout.plain)
        yield Step("create", layout.origin, table=layout.merge_table)
        return
    if make_real:
        yield from _make_real(layout)
    yield Step("load", layout.origin, table=layout.merge_table)
    yield Step("suspend", layout.origin)
    if make_real:
        yield Step("resume", layout.real, joined=True)
    yield Step("resume", layout.origin, before=origin_now, joined=True)


def merge_anew(layout: SnapshotLayout) -> Iterator[Step]:
    """Yield the steps that continue a merge which stopped at an error: a new device forgets it."""
    yield Step("remove", layout.origin)
    yield Step("create", layout.origin, table=layout.merge_table)


def merge_end(layout: SnapshotLayout, origin_now: str, *, last: bool, wipe: int) -> Iterator[Step]:
    """Yield the steps after a merge: the origin is as before the snapshot was taken.

    The store, which is empty now, is wiped: the COW device can be used for the next snapshot.
    `wipe`: sectors; 0 where something is left in the store, because the merge has failed.
    """
    table = layout.plain if last and layout.real else layout.origin_table
    yield Step("load", layout.origin, table=table)
    yield from _swap_origin(layout, origin_now, last=last)
    if last and not layout.real:
        yield Step("retire", layout.origin)
    if layout.cow:
        yield Step("remove", layout.cow, before=layout.parts)
    if layout.cow and wipe:
        yield Step("clean", layout.store_device, size=wipe)
    yield from (Step("detach", file) for file in layout.files)


def extend(
    layout: SnapshotLayout, parts: str, cow_now: str, files: dict[str, int]
) -> Iterator[Step]:
    """Yield the steps that make the COW longer, file by file and then the table `parts`.

    Nothing else is to be told: the kernel looks at the size of the COW device whenever it needs
    another chunk (persistent_prepare_exception in dm-snap-persistent.c; measured on 6.1 and 6.12).
    """
    for file, sectors in files.items():
        yield Step("grow", file, size=sectors)
    yield Step("load", layout.cow, table=parts)
    yield Step("suspend", layout.cow)
    yield Step("resume", layout.cow, before=cow_now, joined=True)


def _make_real(layout: SnapshotLayout) -> Iterator[Step]:
    """Yield the steps that make the hidden device; its table waits until the origin is suspended.

    Until then it is as long as it will be and reads as zeroes: a device without any table has no
    node under udev, so that a script could not name it.
    """
    yield Step("create", layout.real, table=layout.placeholder)
    yield Step("load", layout.real, table=layout.plain)


def _swap_origin(layout: SnapshotLayout, origin_now: str, *, last: bool) -> Iterator[Step]:
    yield Step("suspend", layout.origin)
    if last and layout.real:
        # Two devices with one table are never active together: a mirror's log would have two users.
        yield Step("suspend", layout.real, joined=True)
    yield Step("resume", layout.origin, before=origin_now, joined=True)
    if last and layout.real:
        yield Step("remove", layout.real, before=layout.plain)


def _remove_cow(layout: SnapshotLayout) -> Iterator[Step]:
    if layout.cow:
        yield Step("remove", layout.cow, before=layout.parts)
    yield from (Step("detach", file) for file in layout.files)
