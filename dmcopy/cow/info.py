"""What an exception store says about itself, in the kernel's own numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

from dmcopy.cow.store import Store


class StoreInfo(NamedTuple):
    """A store in numbers. `allocated`, `total` and `metadata` in sectors, as in a status line.

    `areas`: the areas that the kernel would have read. `highest_old`: the last chunk of the origin
    that has an exception, -1 when none has. `next_free`: where the next exception would go.
    """

    valid: bool
    version: int
    chunk_size: int
    areas: int
    exceptions: int
    highest_old: int
    next_free: int
    allocated: int
    total: int
    metadata: int

    @property
    def status(self) -> str:
        """The status that the kernel prints for such a snapshot right after it was activated."""
        if self.valid:
            return f"{self.allocated}/{self.total} {self.metadata}"
        from dmcopy.status.snapshot import INVALID  # with the types of all lines: rarely needed

        return INVALID

    @property
    def percent(self) -> float:
        """How full the COW is, as lvm counts: 0 when it holds nothing but metadata."""
        if self.allocated == self.metadata:
            return 0.0
        return 100 * self.allocated / self.total

    def as_dict(self) -> dict[str, Any]:
        """Return everything for --json."""
        return {
            "valid": self.valid,
            "version": self.version,
            "chunk_size": self.chunk_size,
            "areas": self.areas,
            "exceptions": self.exceptions,
            "next_free": self.next_free,
            "allocated_sectors": self.allocated,
            "total_sectors": self.total,
            "metadata_sectors": self.metadata,
            "percent": round(self.percent, 4),
            "status": self.status,
        }


def gather(store: Store) -> StoreInfo:
    """Go through a store once. Raises MetadataError where its areas run past the end.

    The next free chunk is behind the highest one in use, as read_exceptions in
    drivers/md/dm-snap-persistent.c has it, holes or not.
    """
    layout, size = store.layout, store.header.chunk_size
    exceptions, highest_new, highest_old = 0, layout.first_data - 1, -1
    for entries in store.entries():
        exceptions += len(entries.pairs) // 2
        highest_new = max(highest_new, *entries.news)
        highest_old = max(highest_old, *entries.olds)
    next_free = layout.after(highest_new)
    # A full area is followed by one that is read, too, and found empty.
    current_area = exceptions // layout.per_area
    return StoreInfo(
        valid=store.header.valid,
        version=store.header.version,
        chunk_size=size,
        areas=current_area + 1,
        exceptions=exceptions,
        highest_old=highest_old,
        next_free=next_free,
        allocated=next_free * size,
        total=store.device.sectors,
        metadata=(current_area + 2) * size,
    )
