"""Snapshots of live devices on any mapper: take, drop, merge, extend; finish and undo.

    snapshots = Snapshots(KernelMapper())
    snapshots.take(Request("before-upgrade", origin="data", cow="/dev/vdc"))
    snapshots.merge("before-upgrade", progress=print)     # rolls `data` back

Each verb is a list of steps (`snapshot_layout`) with a record in a journal: a process that is
killed at any moment leaves a record with which `finish` ends what it began, or `undo` takes it
back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from dmcopy.errors import DmcopyError, UsageError
from dmcopy.mapper.base import Mapper
from dmcopy.mapper.ledger import Ledger
from dmcopy.status.snapshot import INVALID, MERGE_FAILED
from dmcopy.table import Linear, SnapshotMerge, Table
from dmcopy.units import format_sectors
from dmcopy.workflows import interrupted
from dmcopy.workflows import snapshot_layout as layouts
from dmcopy.workflows.journal import Journal
from dmcopy.workflows.nodes import Nodes
from dmcopy.workflows.record import Record, Step
from dmcopy.workflows.snapshot_actions import actions
from dmcopy.workflows.snapshot_layout import Layout
from dmcopy.workflows.snapshot_merging import Merge, Progress, unused
from dmcopy.workflows.snapshot_request import LVM_UUID, Checker, Request
from dmcopy.workflows.snapshot_status import read
from dmcopy.workflows.snapshot_survey import Found, Survey
from dmcopy.workflows.steps import Runner

NOUN: Final = "snapshot"
_WIPED: Final = 2048  # sectors: where file systems and RAID keep what they are known by


class Snapshots:
    """The snapshots of `mapper`.

    Every method raises UsageError for what cannot be, BusyError naming who is in the way,
    DeviceError, and DmcopyError for a workflow that was interrupted and is to be ended first.
    """

    def __init__(
        self, mapper: Mapper, *, nodes: Nodes | None = None, journal: Journal | None = None
    ) -> None:
        self.mapper = mapper
        self.nodes = nodes or Nodes(Ledger())
        self.journal = journal or Journal()
        self.runner = Runner(
            mapper,
            self.journal,
            actions=actions(mapper, self.nodes),
            resolve=self.nodes.usable,
            key=self.nodes.key,
        )

    def take(self, request: Request) -> Layout:
        """Take a snapshot; return how it is laid out.

        A mapped origin stays in use, with a file system mounted on it, which is frozen while the
        tables are exchanged. One that is not mapped must not be in use, and is used through the
        new device `Layout.origin` from now on.
        """
        self._not_interrupted(request.name, request.origin)
        plan = Checker(self.mapper, self.nodes, request).plan()
        wipe = 0 if request.reuse else max(plan.layout.chunk_size, _WIPED)
        steps = layouts.take(plan.layout, plan.origin_now, joining=plan.joining, wipe=wipe)
        self._run("take", plan.layout, steps)
        return plan.layout

    def drop(self, name: str) -> Layout:
        """Remove a snapshot; the last one gives the origin its own table back.

        The COW device keeps its content. One whose merge has failed leaves its origin as it is by
        then, rolled back in part.
        """
        self._not_interrupted(name)
        survey = Survey(self.mapper, self.nodes)
        merge = survey.find_merge(name)
        if merge is not None:
            return self._drop_merge(survey, merge)
        found = survey.find(name)
        layout = self._layout(survey, found)
        unused(self.mapper, self.nodes, name, "unmount it first")
        origin = survey.table(layout.origin) if layout.origin else Table()
        if any(isinstance(line.target, SnapshotMerge) for line in origin):
            raise UsageError(_merging_into(layout.origin))
        last = not survey.others(found)
        self._run("drop", layout, layouts.drop(layout, str(origin), last=last))
        return layout

    def merge(self, name: str, *, progress: Callable[[Progress], None] | None = None) -> Layout:
        """Roll the origin back to the snapshot, which is used up; return when it is done.

        Neither may be in use when it begins; from then on the origin reads as the snapshot did.
        Called again after an interruption, also by a reboot, it goes on.
        """
        return self._merging(name).run(progress)

    def merge_plan(self, name: str) -> list[Record]:
        """Return the workflows before and after a merge, for a dry run: the engine merges between.

        Raises what `merge` would.
        """
        return self._merging(name).plan()

    def extend(self, name: str, size: int, *, more: str = "", force: bool = False) -> int:
        """Make the COW of a snapshot `size` sectors long; return its new size.

        The room is on the device `more`, behind what that has given already; without it in the file
        that the COW is, which is made longer, or on the device that it is, if that has grown.
        What is on a device that is new to the COW is overwritten with `force` only.
        """
        self._not_interrupted(name)
        survey = Survey(self.mapper, self.nodes)
        layout = self._layout(survey, survey.find(name))
        if not layout.cow:
            raise UsageError(
                f"the exceptions of {name} are on {layout.cow_path} itself, not on a device that "
                "dmcopy made: it cannot make that longer"
            )
        status = read(self.mapper, name)
        if status.state:
            raise UsageError(f"{name} cannot be extended: {status.trouble or status}")
        parts = survey.parts_of(layout.cow)
        missing = size - sum(length for length, _ in parts)
        if missing <= 0:
            raise UsageError(f"{name}: its COW has {format_sectors(size - missing)} already")
        if more and survey.key(survey.path(more)) == survey.key(parts[-1][1].device):
            more = ""
        if more and not force:
            self.check_more(name, more)
        files = {} if more else self._files(layout, parts, missing)
        grown = Table.concat(self._with(parts, more, missing) if more else _longer(parts, missing))
        now = str(survey.table(layout.cow))
        self._run("extend", layout, layouts.extend(layout, str(grown), now, files))
        return size

    def check_more(self, name: str, more: str) -> None:
        """Raise UsageError if there is something on the device `more` that is not the COW's."""
        survey = Survey(self.mapper, self.nodes)
        cow = self._layout(survey, survey.find(name)).cow
        parts = survey.parts_of(cow) if cow else []
        path = survey.path(more)
        ours = {survey.key(part.device) for _, part in parts}
        found = "" if survey.key(path) in ours else self.nodes.content(path)
        if found:
            raise UsageError(f"{more} has {found} on it: --force overwrites it")

    def finish(
        self, name: str, *, progress: Callable[[Progress], None] | None = None
    ) -> Record | None:
        """End the interrupted workflow of a snapshot; None when a reboot has ended it."""
        record = interrupted.find(self.journal, NOUN, name)
        if record.verb == "merge" and not record.undoing:
            self.merge(name, progress=progress)
        elif not self._gone(record):
            self._check_cow(record)
            self.journal.adopt(record)
            self.runner.run(record)
            self.journal.end(record)
        else:
            return None
        return record

    def undo(self, name: str) -> Record | None:
        """Take back the interrupted workflow of a snapshot; None when a reboot has done that."""
        record = interrupted.find(self.journal, NOUN, name)
        if record.rebooted and record.verb == "merge":
            raise DmcopyError(
                f"{name}: a merge that a reboot interrupted cannot be taken back; "
                f"'dmcopy snapshot merge {name}' goes on with it"
            )
        if self._gone(record):
            return None
        self.journal.adopt(record)
        self.runner.undo(record)
        return record

    def forget(self, name: str) -> str:
        """Give an interrupted workflow up, and change no device; return what is left behind."""
        return interrupted.forget(self.mapper, self.journal, NOUN, name, self.nodes.attached)

    def _check_cow(self, record: Record) -> None:
        """Raise UsageError if the COW that a snapshot is to have holds something else by now.

        Or still: what it was forced over may not be wiped yet.
        """
        layout = Layout.from_dict(record.facts["layout"])
        if record.verb != "take" or record.undoing or self.mapper.exists(layout.cow):
            return
        cow = layout.store_device
        found = "" if self.nodes.has_store(cow) else self.nodes.content(cow)
        if found:
            raise UsageError(
                f"{cow} has {found} on it, and '{record}' was interrupted before it was in use: "
                f"'dmcopy snapshot undo {record.name}' takes that back"
            )

    def _gone(self, record: Record) -> bool:
        """Forget a record whose devices a reboot has removed; return whether it was one."""
        if record.rebooted:
            self.journal.end(record)
        return record.rebooted

    def _run(self, verb: str, layout: Layout, steps: Iterable[Step]) -> None:
        record = Record(
            NOUN,
            verb,
            layout.name,
            list(steps),
            devices=layout.devices,
            facts={"layout": layout.as_dict()},
        )
        self.journal.begin(record)
        self.runner.run(record)
        self.journal.end(record)

    def _merging(self, name: str) -> Merge:
        """Return the merge of this name: one that was interrupted, or one that has just begun."""
        record = self.journal.find(NOUN, name)
        if record is None or record.verb != "merge":
            self._not_interrupted(name)
            record = self._merge_record(name)
            self.journal.begin(record)
        elif record.undoing:
            raise DmcopyError(f"{name}: '{record}' was being taken back: {record.advice}")
        return Merge(self.mapper, self.nodes, self.runner, record)

    def _drop_merge(self, survey: Survey, found: Found) -> Layout:
        layout = self._layout(survey, found)
        if read(self.mapper, found.name).state not in (MERGE_FAILED, INVALID):
            raise UsageError(_merging_into(found.name))
        last, now = not survey.others(found), str(survey.table(found.name))
        self._run("drop", layout, layouts.merge_end(layout, now, last=last, wipe=0))
        return layout

    def _merge_record(self, name: str) -> Record:
        survey = Survey(self.mapper, self.nodes)
        merge = survey.find_merge(name)
        if merge is not None:
            return self._found_merge(survey, merge)
        found = survey.find(name)
        layout = self._layout(survey, found)
        if not found.target.persistent:
            raise UsageError(
                f"{name} keeps its exceptions in memory (store N): it cannot be merged"
            )
        if not layout.origin:
            raise UsageError(
                f"there is no snapshot-origin over {layout.base} into which it could be merged"
            )
        status = read(self.mapper, name)
        if status.used is None or status.metadata is None:
            raise UsageError(f"{name} cannot be merged: {status.trouble or status}")
        unused(self.mapper, self.nodes, name, "unmount it first")
        unused(
            self.mapper,
            self.nodes,
            layout.origin,
            "unmount it; as soon as the merge runs, it can be mounted again",
        )
        now = str(survey.table(layout.origin))
        total = status.used.used - status.metadata
        facts = {"layout": layout.as_dict(), "phase": "begin", "total": total}
        steps = list(layouts.merge(layout, now))
        return Record(NOUN, "merge", name, steps, devices=layout.devices, facts=facts)

    def _found_merge(self, survey: Survey, found: Found) -> Record:
        """Return a record for a merge under way that has none: forgotten, or begun by hand."""
        layout, status = self._layout(survey, found), read(self.mapper, found.name)
        known = status.used is not None and status.metadata is not None
        total = status.used.used - status.metadata if known else 0  # type: ignore[union-attr,operator]
        facts = {"layout": layout.as_dict(), "phase": "run", "total": total}
        devices = layout.devices
        return Record(NOUN, "merge", layout.name, [], devices, facts, committed=True)

    def _layout(self, survey: Survey, found: Found) -> Layout:
        if survey.infos[found.name].uuid.startswith(LVM_UUID):
            raise UsageError(f"{found.name} belongs to LVM: use lvremove, lvconvert or lvextend")
        layout = survey.layout(found)
        there = [name for name in layout.devices if name in survey.infos]
        suspended = [name for name in there if survey.infos[name].suspended]
        if suspended:
            raise DmcopyError(f"{suspended[0]} is suspended: resume it first")
        return layout

    def _not_interrupted(self, *names: str) -> None:
        for record in self.journal.records():
            if not record.running and {record.name, *record.devices} & set(names):
                raise DmcopyError(f"{names[0]}: '{record}' was interrupted: {record.advice}")

    def _with(
        self, parts: list[tuple[int, Linear]], more: str, missing: int
    ) -> list[tuple[int, Linear]]:
        """Return the parts and one on the device `more`, which must be free and long enough."""
        survey = Survey(self.mapper, self.nodes)
        path = survey.path(more)
        self.nodes.claim(path)
        there = self.nodes.sectors(path)
        if there < missing:
            raise UsageError(f"{more} has {format_sectors(there)}, but {missing}s are to be added")
        if self.nodes.is_file(path):
            raise UsageError(f"{more} is a file: give a device (losetup --find --show {more})")
        name = survey.mapped(path)
        lasting = self.mapper.path(name) if name else self.nodes.stable(self.nodes.key(path))
        return [*parts, (missing, Linear(lasting, 0))]

    def _files(
        self, layout: Layout, parts: list[tuple[int, Linear]], missing: int
    ) -> dict[str, int]:
        """Return the file to be made longer, and how long; refuse when there is no room."""
        length, last = parts[-1]
        end = last.offset + length + missing
        if last.device in layout.files:
            return {last.device: end}
        there = self.nodes.sectors(self.nodes.usable(last.device))
        if there < end:
            raise UsageError(
                f"{layout.name}: its COW uses all of {last.device}, {format_sectors(there)}: make "
                "that larger first, or add a device (--with DEVICE)"
            )
        return {}


def _merging_into(origin: str) -> str:
    return (
        f"a snapshot is being merged into {origin}: wait until it has ended, as 'dmcopy snapshot "
        f"merge {origin}' does"
    )


def _longer(parts: list[tuple[int, Linear]], missing: int) -> list[tuple[int, Linear]]:
    length, last = parts[-1]
    return [*parts[:-1], (length + missing, last)]
