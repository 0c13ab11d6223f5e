"""Which snapshots there are: found in the tables of the mapped devices, and so any program's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dmcopy.errors import DmcopyError, UsageError
from dmcopy.table import Linear, Snapshot, SnapshotMerge, SnapshotOrigin, Table
from dmcopy.workflows.site import Site
from dmcopy.workflows.snapshot_layout import SnapshotLayout

REAL: Final = "-real"
COW: Final = "-cow"
LVM_UUID: Final = "LVM-"


@dataclass(frozen=True, slots=True)
class Found:
    """A snapshot that is there.

    `name` is its device; while it merges, that of the origin, which has the exceptions then.
    `base` and `cow` are the keys of what its table names (see `Site.key`).
    """

    name: str
    target: Snapshot | SnapshotMerge
    length: int
    base: str
    cow: str

    @property
    def merging(self) -> bool:
        """Whether its exceptions are being copied back into the origin."""
        return isinstance(self.target, SnapshotMerge)


def snapshots(site: Site) -> list[Found]:
    """Return every snapshot and merge, by name."""
    found = []
    for name in sorted(site.infos):
        for line in site.table(name):
            if isinstance(line.target, Snapshot | SnapshotMerge):
                keys = site.key(line.target.origin), site.key(line.target.cow)
                found.append(Found(name, line.target, line.length, *keys))
    return found


def find(site: Site, name: str) -> Found:
    """Return the snapshot of this name. Raises UsageError when there is none."""
    for found in snapshots(site):
        if found.name == name and not found.merging:
            return found
    if name not in site.infos:
        raise UsageError(f"there is no snapshot {name!r}; 'dmcopy snapshot status' lists them")
    raise UsageError(f"{name} is a mapped device, but not a snapshot")


def find_merge(site: Site, name: str) -> Found | None:
    """Return the merge of the snapshot `name`, or into the device `name`; None if none is."""
    for found in snapshots(site):
        if found.merging and name in (found.name, _snapshot_of(site, found)):
            return found
    return None


def others(site: Site, found: Found) -> list[str]:
    """Return the other snapshots of the same origin."""
    return [
        other.name
        for other in snapshots(site)
        if other.base == found.base and other.name != found.name and not other.merging
    ]


def origin_of(site: Site, base: str) -> str:
    """Return the device through which the origin at key `base` is written, "" if none."""
    for name in site.infos:
        for line in site.table(name):
            is_origin = isinstance(line.target, SnapshotOrigin | SnapshotMerge)
            if is_origin and site.key(line.target.devices[0]) == base:
                return name
    return ""


def layout_of(site: Site, found: Found) -> SnapshotLayout:
    """Return how a snapshot that is there is laid out, in names that outlive a reboot."""
    origin = origin_of(site, found.base)
    base = site.mapped(found.base)
    real = base if base and base == f"{origin}{REAL}" else ""
    cow = site.mapped(found.cow)
    name = _snapshot_of(site, found)
    ours = cow if cow == f"{name}{COW}" else ""
    parts = site.stable(site.table(ours)) if ours else Table()
    files = [file for file in parts.devices if site.machine.is_file(file)]
    return SnapshotLayout(
        name=name,
        origin=origin,
        real=real,
        base=site.lasting(found.base),
        plain=str(site.stable(site.table(real))) if real else "",
        length=found.length,
        cow=ours,
        cow_path=site.lasting(found.cow),
        parts=str(parts),
        store=found.target.store,
        chunk_size=found.target.chunk_size,
        features=found.target.features,
        files=tuple(file for file in files if site.machine.attached(file)),
    )


def changeable(site: Site, found: Found) -> SnapshotLayout:
    """Return the layout of a snapshot that a workflow may change. Raises UsageError, DmcopyError.

    One of LVM's is not, nor one of which a device is suspended.
    """
    if site.infos[found.name].uuid.startswith(LVM_UUID):
        raise UsageError(f"{found.name} belongs to LVM: use lvremove, lvconvert or lvextend")
    layout = layout_of(site, found)
    there = [name for name in layout.devices if name in site.infos]
    suspended = [name for name in there if site.infos[name].suspended]
    if suspended:
        raise DmcopyError(f"{suspended[0]} is suspended: resume it first")
    return layout


def parts_of(site: Site, cow: str) -> list[tuple[int, Linear]]:
    """Return the lengths and places that the COW `cow` is made of. Raises DmcopyError."""
    parts = [(line.length, line.target) for line in site.stable(site.table(cow))]
    linear = [(length, target) for length, target in parts if isinstance(target, Linear)]
    if len(linear) < len(parts):
        raise DmcopyError(f"{cow} has been given a table that is not only linear")
    return linear


def merging_into(origin: str) -> UsageError:
    """Return the refusal of what cannot be while a snapshot is being merged."""
    return UsageError(
        f"a snapshot is being merged into {origin}: wait until it has ended, as 'dmcopy snapshot "
        f"merge {origin}' does"
    )


def _snapshot_of(site: Site, found: Found) -> str:
    """Return the name of a snapshot. While it is merged, only that of its COW tells it."""
    cow = site.mapped(found.cow)
    return cow.removesuffix(COW) if found.merging and cow.endswith(COW) else found.name
