"""What a device server has, kept in a file: for the next one, if this one is killed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping

from dmcopy.atomic import replace_file
from dmcopy.errors import DmcopyError, MetadataError, UsageError
from dmcopy.mapper.base import note_failure
from dmcopy.mapper.userspace import UserMapper
from dmcopy.runtime import kept_path
from dmcopy.table import (
    ConciseDevice,
    CoreLog,
    DiskLog,
    Mirror,
    Snapshot,
    SnapshotOrigin,
    Table,
    TableLine,
)


class Kept:
    """The devices of an engine as they were when `save` was last called.

    `marks`: by what their nodes can be taken over, by names, once they were loaded.
    """

    def __init__(self) -> None:
        self._path = kept_path()
        self._saved: object = None
        self.marks: dict[str, str] = {}

    def save(self, mapper: UserMapper, marks: Mapping[str, str]) -> None:
        """Keep what there is: each device that runs, with its table. Raises DmcopyError."""
        found = [
            {
                "name": info.name,
                "uuid": info.uuid,
                "readonly": info.readonly,
                "table": str(mapper.table(info.name)),
                "mark": marks.get(info.name, ""),
            }
            for info in mapper.ls()
        ]
        if found == self._saved:
            return
        if not found:
            self.remove()
            self._saved = found
            return
        try:
            replace_file(self._path, json.dumps(found).encode())
        except OSError as error:
            raise DmcopyError(
                f"{self._path}: cannot note the devices, so that they outlive the server: "
                f"{error.strerror}"
            ) from error
        self._saved = found

    def load(self) -> list[ConciseDevice]:
        """Return what another server had. Raises MetadataError, UsageError where none was."""
        try:
            # A FIFO without a writer is empty then, and not waited for.
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            with open(os.open(self._path, flags), "rb") as file:
                kept = json.load(file)
                self.marks = {one["name"]: one["mark"] for one in kept}
                return [
                    ConciseDevice(
                        name=one["name"],
                        uuid=one["uuid"],
                        readonly=one["readonly"],
                        table=_after_a_crash(Table.read(one["table"])),
                    )
                    for one in kept
                ]
        except FileNotFoundError:
            raise UsageError("no device server was killed: there is nothing to resume") from None
        except (
            OSError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            DmcopyError,
            RecursionError,
        ) as error:
            raise MetadataError(
                f"{self._path} is not what a device server keeps ({error}): 'dmcopy dm reap' gives "
                "its devices up"
            ) from None

    def remove(self) -> None:
        """Keep nothing: the devices have gone as they should."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)


def restore(mapper: UserMapper, devices: list[ConciseDevice]) -> None:
    """Make devices again, those below others first. All or nothing.

    None may be written to before all are there: a snapshot sees only what is written after it is
    made. Raises what making them raises, and UsageError for one whose state was in memory.
    """
    for one in devices:
        lost = [line for line in one.table if _in_memory(line)]
        if lost:
            raise UsageError(
                f"{one.name}: the list of what it keeps was in the memory of the server "
                f"({lost[0].target_name} with store N), and is lost: 'dmcopy dm reap' gives all up"
            )
    todo = list(devices)
    try:
        while todo:
            # The killed server's nodes may still be there, and open: below others is only what is
            # made here, or the writes of an origin would pass its snapshots by.
            nodes = {mapper.path(one.name) for one in todo}
            ready = [one for one in todo if nodes.isdisjoint(one.table.devices)] or todo
            made = [one for one in ready if _try(mapper, one, last=len(todo) == 1)]
            if not made:
                _try(mapper, ready[0], last=True)
            todo = [one for one in todo if one not in made]
        for one in devices:
            # At its resume an origin learns in what chunks its writes are cut (origin_resume in
            # dm-snap.c): the snapshots that were made after it have to be there.
            if any(isinstance(line.target, SnapshotOrigin) for line in one.table):
                mapper.wait_for(UserMapper.suspending(mapper, one.name))
                mapper.wait_for(UserMapper.resuming(mapper, one.name))
    except BaseException as error:
        note_failure(error, lambda: _remove(mapper))
        raise


def _try(mapper: UserMapper, one: ConciseDevice, *, last: bool) -> bool:
    """Make a device; return False where it fails, perhaps for want of one below it."""
    try:
        UserMapper.create(mapper, one.name, uuid=one.uuid)
        if one.table.lines:
            mapper.load(one.name, one.table, readonly=one.readonly)
            mapper.wait_for(UserMapper.resuming(mapper, one.name))
    except DmcopyError:
        with contextlib.suppress(DmcopyError):
            mapper.wait_for(UserMapper.removing(mapper, one.name))
        if last:
            raise
        return False
    return True


def _remove(mapper: UserMapper) -> None:
    for _ in range(len(mapper.ls())):
        for info in mapper.ls():
            if not info.open_count:
                mapper.wait_for(UserMapper.removing(mapper, info.name))


def _in_memory(line: TableLine) -> bool:
    return isinstance(line.target, Snapshot) and not line.target.persistent


def _after_a_crash(table: Table) -> Table:
    """Return a table that believes its log, and not what was known when it was first loaded."""
    lines = []
    for line in table:
        target = line.target
        if isinstance(target, Mirror) and isinstance(target.log, CoreLog | DiskLog):
            log = dataclasses.replace(target.log, sync=None)
            line = dataclasses.replace(line, target=dataclasses.replace(target, log=log))
        lines.append(line)
    return Table(tuple(lines))
