"""Which snapshots there are: found in the tables of the mapped devices, whoever made them."""

from __future__ import annotations

from dataclasses import dataclass

from dmcopy.errors import DmcopyError, UsageError
from dmcopy.mapper.base import DeviceInfo, Mapper
from dmcopy.table import Linear, Snapshot, SnapshotMerge, SnapshotOrigin, Table
from dmcopy.workflows.nodes import Nodes
from dmcopy.workflows.snapshot_layout import Layout

REAL = "-real"
COW = "-cow"


@dataclass(frozen=True, slots=True)
class Found:
    """A snapshot that is there.

    `name` is its device; while it merges, that of the origin, which has the exceptions then.
    `base` and `cow` are the keys of what its table names (see `Survey.key`).
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


class Survey:
    """All mapped devices and their active tables, as they are at one moment."""

    def __init__(self, mapper: Mapper, nodes: Nodes) -> None:
        self._mapper = mapper
        self._nodes = nodes
        self.infos: dict[str, DeviceInfo] = {info.name: info for info in mapper.ls()}
        self._names = {info.devno: name for name, info in self.infos.items() if info.devno}
        self._names |= {mapper.path(name): name for name in self.infos}
        self._tables = mapper.active_tables()

    def table(self, name: str) -> Table:
        """Return the active table of a device; an empty one of a device that is going."""
        return self._tables.get(name, Table())

    def mapped(self, device: str) -> str:
        """Return the name of the mapped device that a device of a table is, "" if it is none."""
        return self._names.get(device) or self._names.get(self._nodes.key(device), "")

    def path(self, device: str) -> str:
        """Return the path of what a person calls a device: a mapped one's name, or a path."""
        return self._mapper.path(device) if device in self.infos else device

    def key(self, device: str) -> str:
        """Return what is equal for two names of one device."""
        name = self.mapped(device)
        return self._mapper.path(name) if name else self._nodes.key(device)

    def snapshots(self) -> list[Found]:
        """Return every snapshot and merge, by name."""
        found = []
        for name in sorted(self.infos):
            for line in self.table(name):
                if isinstance(line.target, Snapshot | SnapshotMerge):
                    keys = self.key(line.target.origin), self.key(line.target.cow)
                    found.append(Found(name, line.target, line.length, *keys))
        return found

    def find(self, name: str) -> Found:
        """Return the snapshot of this name. Raises UsageError when there is none."""
        for found in self.snapshots():
            if found.name == name and not found.merging:
                return found
        if name not in self.infos:
            raise UsageError(f"there is no snapshot {name!r}; 'dmcopy snapshot status' lists them")
        raise UsageError(f"{name} is a mapped device, but not a snapshot")

    def find_merge(self, name: str) -> Found | None:
        """Return the merge of the snapshot `name`, or into the device `name`; None if none is."""
        for found in self.snapshots():
            if found.merging and name in (found.name, self.snapshot_of(found)):
                return found
        return None

    def snapshot_of(self, found: Found) -> str:
        """Return the name of a snapshot. While it is merged, only that of its COW tells it."""
        cow = self.mapped(found.cow)
        return cow.removesuffix(COW) if found.merging and cow.endswith(COW) else found.name

    def others(self, found: Found) -> list[str]:
        """Return the other snapshots of the same origin."""
        return [
            other.name
            for other in self.snapshots()
            if other.base == found.base and other.name != found.name and not other.merging
        ]

    def origin_of(self, base: str) -> str:
        """Return the device through which the origin at key `base` is written, "" if none."""
        for name in self.infos:
            for line in self.table(name):
                is_origin = isinstance(line.target, SnapshotOrigin | SnapshotMerge)
                if is_origin and self.key(line.target.devices[0]) == base:
                    return name
        return ""

    def layout(self, found: Found) -> Layout:
        """Return how a snapshot that is there is laid out, in names that outlive a reboot."""
        origin = self.origin_of(found.base)
        base = self.mapped(found.base)
        real = base if base and base == f"{origin}{REAL}" else ""
        cow = self.mapped(found.cow)
        name = self.snapshot_of(found)
        ours = cow if cow == f"{name}{COW}" else ""
        parts = self.stable(self.table(ours)) if ours else Table()
        files = [file for file in parts.devices if self._nodes.is_file(file)]
        return Layout(
            name=name,
            origin=origin,
            real=real,
            base=self._stable(found.base),
            plain=str(self.stable(self.table(real))) if real else "",
            length=found.length,
            cow=ours,
            cow_path=self._stable(found.cow),
            parts=str(parts),
            store=found.target.store,
            chunk_size=found.target.chunk_size,
            features=found.target.features,
            files=tuple(file for file in files if self._nodes.attached(file)),
        )

    def stable(self, table: Table) -> Table:
        """Return a table with devices in names that outlive a reboot."""
        return table.with_devices(self._stable)

    def same_as(self, table: Table, text: str) -> bool:
        """Return whether a table says what `text` says, whatever names they use for devices."""

        def key(device: str) -> str:
            try:
                return self.key(self._nodes.usable(device))
            except DmcopyError:  # a file without a loop device: no table has it
                return device

        other = Table.read(text)
        return table.canonical().with_devices(key) == other.canonical().with_devices(key)

    def parts_of(self, cow: str) -> list[tuple[int, Linear]]:
        """Return the lengths and places that the COW `cow` is made of. Raises DmcopyError."""
        parts = [(line.length, line.target) for line in self.stable(self.table(cow))]
        linear = [(length, target) for length, target in parts if isinstance(target, Linear)]
        if len(linear) < len(parts):
            raise DmcopyError(f"{cow} has been given a table that is not only linear")
        return linear

    def _stable(self, device: str) -> str:
        name = self.mapped(device)
        return self._mapper.path(name) if name else self._nodes.stable(device)
