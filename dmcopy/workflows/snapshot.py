"""Planning what is done to snapshots of devices in use: drop, merge, extend; see `plan_take`, too.

mapper = KernelMapper()
session = Session(mapper)
session.run(plan_take(mapper, "before-upgrade", "data", "/dev/vdc"))
merge(session, "before-upgrade")     # rolls `data` back
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from dmcopy.errors import DmcopyError, UsageError
from dmcopy.mapper.base import Mapper
from dmcopy.status.snapshot import INVALID, MERGE_FAILED
from dmcopy.table import Linear, SnapshotMerge, Table
from dmcopy.units import format_sectors
from dmcopy.workflows import snapshot_layout as layouts
from dmcopy.workflows.record import Plan
from dmcopy.workflows.session import Session
from dmcopy.workflows.site import Site
from dmcopy.workflows.snapshot_find import (
    Found,
    changeable,
    find,
    find_merge,
    merging_into,
    others,
    parts_of,
)
from dmcopy.workflows.snapshot_layout import SnapshotLayout
from dmcopy.workflows.snapshot_status import read
from dmcopy.workflows.snapshot_take import plan_take
from dmcopy.workflows.step import Step

__all__ = [
    "Growth",
    "check_more",
    "merge",
    "plan_drop",
    "plan_extend",
    "plan_merge",
    "plan_take",
]


def plan_drop(mapper: Mapper, name: str) -> Plan:
    """Plan to remove a snapshot; the last one gives the origin its own table back.

    The COW device keeps its content. One whose merge has failed leaves its origin as it is by
    then, rolled back in part. Raises UsageError, BusyError, DmcopyError.
    """
    site = Site(mapper)
    merging = find_merge(site, name)
    if merging is not None:
        return _plan_drop_merge(site, merging)
    found = find(site, name)
    layout = changeable(site, found)
    site.check_closed(name, "unmount it first")
    origin = site.table(layout.origin)
    if any(isinstance(line.target, SnapshotMerge) for line in origin):
        raise merging_into(layout.origin)
    return _plan("drop", layout, layouts.drop(layout, str(origin), last=not others(site, found)))


def plan_merge(mapper: Mapper, name: str) -> Plan:
    """Plan to roll the origin back to the snapshot, which is used up.

    Neither may be in use when it begins; from then on the origin reads as the snapshot did. A merge
    that is under way already is continued. Raises UsageError, BusyError, DmcopyError.
    """
    site = Site(mapper)
    merging = find_merge(site, name)
    found = merging or find(site, name)
    layout = changeable(site, found)
    status = read(mapper, found.name)
    known = status.used is not None and status.metadata is not None
    total = status.used.used - status.metadata if known else 0  # type: ignore[union-attr,operator]
    if merging is not None:
        return _plan("merge", layout, (), total=total)
    if not found.target.persistent:
        raise UsageError(f"{name} keeps its exceptions in memory (store N): it cannot be merged")
    if not layout.origin:
        raise UsageError(
            f"there is no snapshot-origin over {layout.base} into which it could be merged"
        )
    if not known:
        raise UsageError(f"{name} cannot be merged: {status.trouble or status}")
    site.check_closed(name, "unmount it first")
    hint = "unmount it; as soon as the merge runs, it can be mounted again"
    site.check_closed(layout.origin, hint)
    steps = layouts.merge(layout, str(site.table(layout.origin)))
    return _plan("merge", layout, steps, total=total)


def merge(session: Session, name: str, *, timeout: float | None = None) -> SnapshotLayout:
    """Roll the origin back to the snapshot `name`; return when it is done.

    Called again after an interruption, also by a reboot, it continues. Raises what `plan_merge` and
    `Session.run` do.
    """
    record = session.journal.find("snapshot", name)
    if record is not None and record.verb == "merge":
        if record.undoing:
            raise DmcopyError(f"{name}: '{record}' was being taken back: {record.advice}")
        layout = session.finish("snapshot", name, timeout=timeout).record.layout
    else:
        session.check_free(name)
        plan = plan_merge(session.mapper, name)
        session.run(plan, timeout=timeout)
        layout = plan.layout
    assert layout is not None
    return layout


class Growth(NamedTuple):
    """How long a COW is to be: `sectors` in all, or `sectors` `more`."""

    sectors: int
    more: bool = False


def plan_extend(
    mapper: Mapper, name: str, size: Growth, *, more: str = "", force: bool = False
) -> Plan:
    """Plan to make the COW of a snapshot longer; its size is then the `total` of the plan.

    The room is on the device `more`, behind what that has given already; without it in the file
    that the COW is, which is made longer, or on the device that it is, if that has grown.
    What is on a device that is new to the COW is overwritten with `force` only. Raises UsageError,
    BusyError, DmcopyError.
    """
    site = Site(mapper)
    layout = changeable(site, find(site, name))
    if not layout.cow:
        raise UsageError(
            f"the exceptions of {name} are on {layout.cow_path} itself, not on a device that "
            "dmcopy made: it cannot make that longer"
        )
    status = read(mapper, name)
    if status.state:
        raise UsageError(f"{name} cannot be extended: {status.trouble or status}")
    parts = parts_of(site, layout.cow)
    there = sum(length for length, _ in parts)
    missing = size.sectors - (0 if size.more else there)
    if missing <= 0:
        raise UsageError(f"{name}: its COW has {format_sectors(there)} already")
    if more and site.key(site.path(more)) == site.key(parts[-1][1].device):
        more = ""
    if more and not force:
        check_more(mapper, name, more)
    files = {} if more else _files(site, layout, parts, missing)
    grown = Table.concat(_with(site, parts, more, missing) if more else _longer(parts, missing))
    now = str(site.table(layout.cow))
    steps = layouts.extend(layout, str(grown), now, files)
    return _plan("extend", layout, steps, total=there + missing)


def check_more(mapper: Mapper, name: str, more: str) -> None:
    """Raise UsageError if there is something on the device `more` that is not the COW's."""
    site = Site(mapper)
    cow = changeable(site, find(site, name)).cow
    ours = {site.key(part.device) for _, part in (parts_of(site, cow) if cow else [])}
    path = site.path(more)
    found = "" if site.key(path) in ours else site.machine.content(path)
    if found:
        raise UsageError(f"{more} has {found} on it: --force overwrites it")


def _plan_drop_merge(site: Site, found: Found) -> Plan:
    layout = changeable(site, found)
    if read(site.mapper, found.name).state not in (MERGE_FAILED, INVALID):
        raise merging_into(found.name)
    last, now = not others(site, found), str(site.table(found.name))
    return _plan("drop", layout, layouts.merge_end(layout, now, last=last, wipe=0))


def _plan(verb: str, layout: SnapshotLayout, steps: Iterable[Step], *, total: int = 0) -> Plan:
    done = list(steps)
    return Plan(
        "snapshot",
        verb,
        layout.name,
        done,
        devices=layout.devices,
        wait="merge" if verb == "merge" else "",
        layout=layout,
        total=total,
        committed=verb == "merge" and not done,
    )


def _with(
    site: Site, parts: list[tuple[int, Linear]], more: str, missing: int
) -> list[tuple[int, Linear]]:
    """Return the parts and one on the device `more`, which must be free and long enough."""
    path = site.path(more)
    site.machine.claim(path)
    there = site.machine.sectors(path)
    if there < missing:
        raise UsageError(f"{more} has {format_sectors(there)}, but {missing}s are to be added")
    if site.machine.is_file(path):
        raise UsageError(f"{more} is a file: give a device (losetup --find --show {more})")
    return [*parts, (missing, Linear(site.lasting(path), 0))]


def _files(
    site: Site, layout: SnapshotLayout, parts: list[tuple[int, Linear]], missing: int
) -> dict[str, int]:
    """Return the file to be made longer, and how long; refuse when there is no room."""
    length, last = parts[-1]
    end = last.offset + length + missing
    if last.device in layout.files or site.machine.can_grow(last.device):
        return {last.device: end}
    there = site.machine.sectors(site.machine.usable(last.device))
    if there < end:
        raise UsageError(
            f"{layout.name}: its COW uses all of {last.device}, {format_sectors(there)}: make "
            "that larger first, or add a device (--with DEVICE)"
        )
    return {}


def _longer(parts: list[tuple[int, Linear]], missing: int) -> list[tuple[int, Linear]]:
    length, last = parts[-1]
    return [*parts[:-1], (length + missing, last)]
