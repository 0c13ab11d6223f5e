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
from dmcopy.workflows.nodes import Nodes
from dmcopy.workflows.snapshot_layout import Layout
from dmcopy.workflows.snapshot_survey import COW, REAL, Survey

DEFAULT_CHUNK: Final = 32
"""Sectors: what the kernel takes for a chunk size of 0 (DM_CHUNK_SIZE_DEFAULT_SECTORS)."""
LEAST_CHUNKS: Final = 3
"""Header, first area, one chunk of data: less holds nothing (measured on 6.1 and 6.12)."""
LVM_UUID: Final = "LVM-"

# What can be loaded into a second device while the first is in use. Others keep metadata on disk
# that two instances would both write, or print a table that is not whole (crypt's key).
_MOVABLE: Final = ("linear", "striped", "unstriped", "mirror", "delay", "flakey", "error", "zero")


@dataclass(frozen=True, slots=True)
class Request:
    """A snapshot `name` of `origin` with its exceptions on `cow`; see `Snapshots.take`.

    `force`: whatever is on `cow` is overwritten. `reuse`: the store on it is this snapshot's, from
    before a restart, and goes on with its own chunk size.
    """

    name: str
    origin: str
    cow: str
    chunk_size: int = DEFAULT_CHUNK
    store: str = "P"
    force: bool = False
    reuse: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """A request that can be met. `origin_now`: the origin's active table, "" if it is not mapped.

    `joining`: the origin is a snapshot-origin already.
    """

    layout: Layout
    origin_now: str = ""
    joining: bool = False


class Checker:
    """Turns a request into a plan. Raises UsageError or BusyError saying what is in the way."""

    def __init__(self, mapper: Mapper, nodes: Nodes, request: Request) -> None:
        self._mapper = mapper
        self._nodes = nodes
        self._request = request
        self._survey = Survey(mapper, nodes)

    def plan(self) -> Plan:
        """Return how the snapshot is taken."""
        request = self._request
        self._must_be_free(request.name)
        self._must_be_free(f"{request.name}{COW}")
        origin, path = self._origin()
        cow = self._cow()
        self._check_pair(path, cow)
        if request.reuse:
            self._request = dataclasses.replace(request, chunk_size=self._stored_chunk_size(cow))
        plan = self._mapped(origin, cow) if origin else self._unmapped(path, cow)
        Table.read(plan.layout.snapshot_table).check()
        self._check_chunk(path, cow)
        self._check_content(cow)
        return plan

    def _origin(self) -> tuple[str, str]:
        """Return the name of the mapped device to go through, "" if there is none, and its path."""
        asked = self._request.origin
        if "/" in asked:
            if not self._nodes.exists(asked):
                raise UsageError(f"{asked}: there is no such device to take a snapshot of")
            name = self._survey.mapped(asked) or self._survey.origin_of(self._survey.key(asked))
        elif asked in self._survey.infos:
            name = asked
        else:
            raise UsageError(
                f"there is no mapped device {asked!r}; a device that is not mapped is given by its "
                f"path, such as /dev/{asked}"
            )
        return name, self._mapper.path(name) if name else os.path.normpath(asked)

    def _cow(self) -> str:
        asked = self._request.cow
        if asked in self._survey.infos:
            return self._mapper.path(asked)
        if not self._nodes.exists(asked):
            raise UsageError(
                f"{asked}: there is no such device or file for the exceptions; "
                f"'truncate -s 1G {asked}' makes a file"
            )
        return str(Path(asked).absolute())

    def _check_pair(self, path: str, cow: str) -> None:
        number = self._nodes.key(path)
        if self._nodes.key(cow) == number:
            raise UsageError(f"{cow} is the origin itself: the exceptions need another device")
        if number in self._nodes.below(cow):
            raise UsageError(
                f"{cow} is on {path} itself: a write to the origin would wait for one to the COW, "
                "and that for the origin"
            )

    def _mapped(self, origin: str, cow: str) -> Plan:
        table = self._survey.table(origin)
        info = self._survey.infos[origin]
        if info.uuid.startswith(LVM_UUID):
            raise UsageError(
                f"{origin} belongs to LVM, which does not know of changes by others: take its "
                "snapshot with lvcreate --snapshot"
            )
        if info.suspended:
            raise UsageError(f"{origin} is suspended: resume it first")
        first = table.lines[0].target if table.lines else None
        if isinstance(first, SnapshotMerge):
            raise UsageError(
                f"a snapshot is being merged into {origin}: wait until it has ended, as 'dmcopy "
                f"snapshot merge {origin}' does"
            )
        if isinstance(first, SnapshotOrigin):
            base = self._survey.stable(table).devices[0]
            return Plan(self._layout(origin, table.length, base, cow), str(table), joining=True)
        odd = [line.target_name for line in table if line.target_name not in _MOVABLE]
        if odd or first is None:
            raise UsageError(
                f"{origin} has {'a line of ' + odd[0] if odd else 'no table'}: dmcopy takes "
                f"snapshots over {', '.join(_MOVABLE)}"
            )
        real = f"{origin}{REAL}"
        self._must_be_free(real)
        plain = str(self._survey.stable(table))
        base = self._mapper.path(real)
        layout = self._layout(origin, table.length, base, cow, real=real, plain=plain)
        return Plan(layout, str(table))

    def _unmapped(self, path: str, cow: str) -> Plan:
        if self._nodes.is_file(path):
            raise UsageError(f"{path} is a file: give a device (losetup --find --show {path})")
        name = f"{os.path.basename(path)}-origin"
        self._must_be_free(name)
        try:
            self._nodes.claim(path)
        except BusyError as error:
            if not self._nodes.mounted(path):
                raise
            hint = (
                "it is no mapped device, so writes to it would go past the snapshot: unmount it, "
                f"take the snapshot, and mount {self._mapper.path(name)} in its place"
            )
            raise BusyError(path, error.holders, hint) from None
        base = self._lasting(path)
        return Plan(self._layout(name, self._nodes.sectors(path), base, cow))

    def _layout(
        self, origin: str, length: int, base: str, cow: str, *, real: str = "", plain: str = ""
    ) -> Layout:
        name = f"{self._request.name}{COW}"
        sectors = self._nodes.sectors(cow)
        least = LEAST_CHUNKS * self._request.chunk_size
        if sectors < least or not sectors:
            raise UsageError(
                f"{cow} has {format_sectors(sectors)}, but the exceptions need at least "
                f"{LEAST_CHUNKS} chunks, {format_sectors(least)}"
            )
        return Layout(
            name=self._request.name,
            origin=origin,
            real=real,
            base=base,
            plain=plain,
            length=length,
            cow=name,
            cow_path=self._mapper.path(name),
            parts=str(Table.of(sectors, Linear(self._lasting(cow), 0))),
            store=self._request.store.upper(),
            chunk_size=self._request.chunk_size,
            files=(cow,) if self._nodes.is_file(cow) else (),
        )

    def _lasting(self, path: str) -> str:
        """Return a name for a device that means the same after a reboot."""
        name = self._survey.mapped(path)
        return self._mapper.path(name) if name else self._nodes.stable(self._nodes.key(path))

    def _check_chunk(self, path: str, cow: str) -> None:
        for device in (path, cow):
            block = self._nodes.block_size(device)
            if self._request.chunk_size * SECTOR_SIZE % block:
                raise UsageError(
                    f"a chunk of {format_sectors(self._request.chunk_size)} is no multiple of the "
                    f"blocks of {device}, {block} bytes"
                )

    def _check_content(self, cow: str) -> None:
        self._nodes.claim(cow)
        found = self._nodes.content(cow)
        if found and not (self._request.force or self._request.reuse):
            raise UsageError(f"{cow} has {found} on it: --force overwrites it")

    def _stored_chunk_size(self, cow: str) -> int:
        """Return the chunk size of the store that is to be gone on with."""
        if self._request.store.upper() == "N":
            raise UsageError("a store N is in memory only: there is none to go on with")
        header = self._nodes.store(cow)
        if header is None:
            raise UsageError(f"{cow} has no store of an earlier snapshot on it")
        if not header.valid:
            raise UsageError(f"the snapshot on {cow} was lost: its store says that it is invalid")
        return header.chunk_size

    def _must_be_free(self, name: str) -> None:
        if check_name(name) in self._survey.infos:
            raise UsageError(f"there is a mapped device {name!r} already")
