"""What `snapshot take` is asked for, and whether it can be: checked before anything is changed."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dmcopy.errors import BusyError, UsageError
from dmcopy.mapper.base import Mapper, check_name
from dmcopy.table import Linear, SnapshotMerge, SnapshotOrigin, Table
from dmcopy.units import SECTOR_SIZE, format_sectors
from dmcopy.workflows import snapshot_layout as layouts
from dmcopy.workflows.record import Plan, PlanRecord
from dmcopy.workflows.site import Site
from dmcopy.workflows.snapshot_find import COW, LVM_UUID, REAL, merging_into, origin_of
from dmcopy.workflows.snapshot_layout import SnapshotLayout

DEFAULT_CHUNK: Final = 32
"""Sectors: what the kernel takes for a chunk size of 0 (DM_CHUNK_SIZE_DEFAULT_SECTORS)."""
LEAST_CHUNKS: Final = 3
"""Header, first area, one chunk of data: less holds nothing (measured on 6.1 and 6.12)."""
_WIPED: Final = 2048  # sectors: where file systems and RAID keep what they are known by

# What can be loaded into a second device while the first is in use. Others keep metadata on disk
# that two instances would both write, or print a table that is not whole (crypt's key).
_MOVABLE: Final = ("linear", "striped", "unstriped", "mirror", "delay", "flakey", "error", "zero")


def plan_take(
    mapper: Mapper,
    name: str,
    origin: str,
    cow: str,
    *,
    chunk_size: int = DEFAULT_CHUNK,
    store: str = "P",
    force: bool = False,
    reuse: bool = False,
) -> Plan:
    """Plan to take the snapshot `name` of `origin`, with its exceptions on `cow`.

    A mapped origin stays in use, with a file system mounted on it, which is frozen while the
    tables are exchanged. One that is not mapped must not be in use, and is used through the new
    device `SnapshotLayout.origin` from then on.

    `force`: whatever is on `cow` is overwritten. `reuse`: the store on it is this snapshot's, from
    before a restart, and keeps its own chunk size. Raises UsageError or BusyError saying
    what is in the way.
    """
    asked = _Asked(name, origin, cow, chunk_size, store.upper(), force=force, reuse=reuse)
    return _Checker(Site(mapper), asked).plan()


def check_store(site: Site, record: PlanRecord) -> None:
    """Raise UsageError if the COW that a snapshot is to have holds something else by now.

    Or still: what it was forced over may not be wiped yet.
    """
    layout = record.layout
    if layout is None or record.verb != "take" or layout.cow in site.infos:
        return
    cow = layout.store_device
    found = "" if site.machine.has_store(cow) else site.machine.content(cow)
    if found:
        raise UsageError(
            f"{cow} has {found} on it, and '{record}' was interrupted before it was in use: "
            f"'dmcopy snapshot undo {record.name}' takes that back"
        )


@dataclass(frozen=True, slots=True)
class _Asked:
    name: str
    origin: str
    cow: str
    chunk_size: int
    store: str
    force: bool
    reuse: bool


class _Checker:
    """Turns what is asked for into a plan."""

    def __init__(self, site: Site, asked: _Asked) -> None:
        self._site = site
        self._machine = site.machine
        self._asked = asked

    def plan(self) -> Plan:
        """Return how the snapshot is taken."""
        asked = self._asked
        self._must_be_free(asked.name)
        self._must_be_free(f"{asked.name}{COW}")
        origin, path = self._origin()
        cow = self._cow()
        self._check_pair(path, cow)
        if asked.reuse:
            self._asked = dataclasses.replace(asked, chunk_size=self._stored_chunk_size(cow))
        layout, now, joining = self._mapped(origin, cow) if origin else self._unmapped(path, cow)
        Table.read(layout.snapshot_table).check()
        self._check_chunk(path, cow)
        self._machine.claim(cow)
        self._site.check_content(cow, force=asked.force or asked.reuse)
        wipe = 0 if asked.reuse else max(layout.chunk_size, _WIPED)
        steps = layouts.take(layout, now, joining=joining, wipe=wipe)
        name, devices = asked.name, layout.devices
        return Plan("snapshot", "take", name, list(steps), devices=devices, layout=layout)

    def _origin(self) -> tuple[str, str]:
        """Return the name of the mapped device to go through, "" if there is none, and its path."""
        asked = self._asked.origin
        if "/" in asked:
            if not self._machine.exists(asked):
                raise UsageError(f"{asked}: there is no such device to take a snapshot of")
            name = self._site.mapped(asked) or origin_of(self._site, self._site.key(asked))
        elif asked in self._site.infos:
            name = asked
        else:
            raise UsageError(
                f"there is no mapped device {asked!r}; a device that is not mapped is given by its "
                f"path, such as /dev/{asked}"
            )
        return name, self._site.mapper.path(name) if name else os.path.normpath(asked)

    def _cow(self) -> str:
        asked = self._asked.cow
        if asked in self._site.infos:
            return self._site.mapper.path(asked)
        if not self._machine.exists(asked):
            raise UsageError(
                f"{asked}: there is no such device or file for the exceptions; "
                f"'truncate -s 1G {asked}' makes a file"
            )
        return str(Path(asked).absolute())

    def _check_pair(self, path: str, cow: str) -> None:
        number = self._machine.key(path)
        if self._machine.key(cow) == number:
            raise UsageError(f"{cow} is the origin itself: the exceptions need another device")
        if number in self._machine.below(cow):
            raise UsageError(
                f"{cow} is on {path} itself: a write to the origin would wait for one to the COW, "
                "and that for the origin"
            )

    def _mapped(self, origin: str, cow: str) -> tuple[SnapshotLayout, str, bool]:
        """Return the layout, the origin's active table, and whether it is an origin already."""
        table = self._site.table(origin)
        info = self._site.infos[origin]
        if info.uuid.startswith(LVM_UUID):
            raise UsageError(
                f"{origin} belongs to LVM, which does not know of changes by others: take its "
                "snapshot with lvcreate --snapshot"
            )
        if info.suspended:
            raise UsageError(f"{origin} is suspended: resume it first")
        first = table.lines[0].target if table.lines else None
        if isinstance(first, SnapshotMerge):
            raise merging_into(origin)
        if isinstance(first, SnapshotOrigin):
            base = self._site.stable(table).devices[0]
            return self._layout(origin, table.length, base, cow), str(table), True
        odd = [line.target_name for line in table if line.target_name not in _MOVABLE]
        if odd or first is None:
            raise UsageError(
                f"{origin} has {'a line of ' + odd[0] if odd else 'no table'}: dmcopy takes "
                f"snapshots over {', '.join(_MOVABLE)}"
            )
        real = f"{origin}{REAL}"
        self._must_be_free(real)
        plain = str(self._site.stable(table))
        base = self._site.mapper.path(real)
        layout = self._layout(origin, table.length, base, cow, real=real, plain=plain)
        return layout, str(table), False

    def _unmapped(self, path: str, cow: str) -> tuple[SnapshotLayout, str, bool]:
        if self._machine.is_file(path):
            raise UsageError(f"{path} is a file: give a device (losetup --find --show {path})")
        name = f"{os.path.basename(path)}-origin"
        self._must_be_free(name)
        try:
            self._machine.claim(path)
        except BusyError as error:
            if not any(holder.kind == "mount" for holder in self._machine.holders(path)):
                raise
            hint = (
                "it is no mapped device, so writes to it would go past the snapshot: unmount it, "
                f"take the snapshot, and mount {self._site.mapper.path(name)} in its place"
            )
            raise BusyError(path, error.holders, hint) from None
        base = self._site.lasting(path)
        return self._layout(name, self._machine.sectors(path), base, cow), "", False

    def _layout(
        self, origin: str, length: int, base: str, cow: str, *, real: str = "", plain: str = ""
    ) -> SnapshotLayout:
        name = f"{self._asked.name}{COW}"
        sectors = self._machine.sectors(cow)
        least = LEAST_CHUNKS * self._asked.chunk_size
        if sectors < least or not sectors:
            raise UsageError(
                f"{cow} has {format_sectors(sectors)}, but the exceptions need at least "
                f"{LEAST_CHUNKS} chunks, {format_sectors(least)}"
            )
        return SnapshotLayout(
            name=self._asked.name,
            origin=origin,
            real=real,
            base=base,
            plain=plain,
            length=length,
            cow=name,
            cow_path=self._site.mapper.path(name),
            parts=str(Table.of(sectors, Linear(self._site.lasting(cow), 0))),
            store=self._asked.store,
            chunk_size=self._asked.chunk_size,
            files=(cow,) if self._machine.is_file(cow) else (),
        )

    def _check_chunk(self, path: str, cow: str) -> None:
        for device in (path, cow):
            block = self._machine.block_size(device)
            if self._asked.chunk_size * SECTOR_SIZE % block:
                raise UsageError(
                    f"a chunk of {format_sectors(self._asked.chunk_size)} is no multiple of the "
                    f"blocks of {device}, {block} bytes"
                )

    def _stored_chunk_size(self, cow: str) -> int:
        """Return the chunk size of the store that is to be continued."""
        if self._asked.store == "N":
            raise UsageError("a store N is in memory only: there is none to continue")
        header = self._machine.store(cow)
        if header is None:
            raise UsageError(f"{cow} has no store of an earlier snapshot on it")
        if not header.valid:
            raise UsageError(f"the snapshot on {cow} was lost: its store says that it is invalid")
        return header.chunk_size

    def _must_be_free(self, name: str) -> None:
        if check_name(name) in self._site.infos:
            raise UsageError(f"there is a mapped device {name!r} already")
