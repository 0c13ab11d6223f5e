"""How the snapshots are: how full, in which state, and what was interrupted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from dmcopy.mapper.base import Mapper
from dmcopy.status import SnapshotStatus
from dmcopy.status.snapshot import INVALID, MERGE_FAILED, OVERFLOW
from dmcopy.workflows.journal import Journal
from dmcopy.workflows.record import PlanRecord
from dmcopy.workflows.site import Site
from dmcopy.workflows.snapshot_find import Found, layout_of, parts_of, snapshots

_STATES: Final = {INVALID: "invalid", MERGE_FAILED: "merge failed", OVERFLOW: "overflow"}
LOST: Final = (_STATES[INVALID], _STATES[OVERFLOW])
"""The states of a snapshot that is nothing any more but a name."""


@dataclass(frozen=True, slots=True)
class SnapshotState:
    """How one snapshot is. Sizes are in sectors.

    `state`: active, merging, merged, invalid, overflow, merge failed, suspended, interrupted (there
    is no snapshot, but a workflow of that name that was interrupted), unknown. `origin`: the device
    through which the origin is used. `used` of `total` sectors of the COW hold data and metadata;
    None where the state does not say. `trouble`: what is wrong, in words. `working`: the workflow
    that runs on it. `interrupted`: one that was, and `advice`, what can be done about it.
    """

    name: str
    state: str
    origin: str = ""
    cow: str = ""
    store: str = ""
    chunk_size: int = 0
    used: int | None = None
    total: int | None = None
    metadata: int | None = None
    percent: float | None = None
    trouble: str = ""
    working: str = ""
    interrupted: str = ""
    advice: str = ""


def states(mapper: Mapper, journal: Journal, name: str = "") -> list[SnapshotState]:
    """Return the state of one snapshot or of all, by whatever program they were made."""
    site = Site(mapper)
    records = {record.name: record for record in journal.records("snapshot")}
    merges = {
        record.layout.origin: record
        for record in records.values()
        if record.layout is not None and record.verb == "merge"
    }
    found = []
    for one in snapshots(site):
        record = merges.get(one.name) if one.merging else records.get(one.name)
        found.append(_state(site, one, record))
    known = {state.name for state in found}
    found += [
        _without_device(site, record) for record in records.values() if record.name not in known
    ]
    return sorted(
        (state for state in found if name in ("", state.name)), key=lambda state: state.name
    )


def read(mapper: Mapper, name: str) -> SnapshotStatus:
    """Return the status of a snapshot's device: without a state in words, if it has none."""
    for line in mapper.status(name):
        if isinstance(line.status, SnapshotStatus):
            return line.status
    return SnapshotStatus("Unknown")


def _state(site: Site, found: Found, record: PlanRecord | None) -> SnapshotState:
    status = read(site.mapper, found.name)
    layout = layout_of(site, found)
    word = _STATES.get(status.state, "unknown" if status.state else "")
    if not word:
        word = "active" if not found.merging else "merged" if status.empty else "merging"
    # The origin of a snapshot that is only half taken has its old table: the record knows it.
    devices = layout.devices if record is None else record.devices
    suspended = _suspended(site, devices)
    origin = layout.origin if record is None or record.layout is None else record.layout.origin
    cow = layout.cow_path if not layout.parts else parts_of(site, layout.cow)[0][1].device
    state = SnapshotState(
        name=record.name if record is not None else found.name,
        state="suspended" if suspended else word,
        origin=found.name if found.merging else origin,
        cow=cow,
        store=found.target.store,
        chunk_size=found.target.chunk_size,
        used=None if status.used is None else status.used.used,
        total=None if status.used is None else status.used.total,
        metadata=status.metadata,
        percent=None if status.percent is None else round(status.percent, 2),
        trouble=suspended or status.trouble,
    )
    return _with(state, record)


def _without_device(site: Site, record: PlanRecord) -> SnapshotState:
    layout = record.layout
    assert layout is not None  # `record.parse` has seen to that
    suspended = _suspended(site, record.devices)
    word = "unknown" if record.running else "interrupted"
    state = SnapshotState(
        name=record.name,
        state="suspended" if suspended else word,
        origin=layout.origin,
        cow=layout.cow_path,
        store=layout.store,
        chunk_size=layout.chunk_size,
        trouble=suspended,
    )
    return _with(state, record)


def _suspended(site: Site, devices: tuple[str, ...]) -> str:
    """Return a sentence about the devices that are suspended, "" when none is."""
    names = [name for name in devices if name in site.infos and site.infos[name].suspended]
    return f"{', '.join(names)}: suspended, so its users wait" if names else ""


def _with(state: SnapshotState, record: PlanRecord | None) -> SnapshotState:
    """Return the state with what its record says."""
    if record is None:
        return state
    if record.running:
        return replace(state, working=str(record))
    return replace(state, interrupted=str(record), advice=record.advice)
