"""Where a persistent store puts its chunks (persistent_prepare_exception in dm-snap-persistent.c).

`Snapshot.allocation` names the class, so that a snapshot of your own may put them elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from dmcopy.io.region import Device
from dmcopy.ondisk.exception_store import AreaLayout

LAST_SECTOR = (1 << 64) - 1
"""Numbers of sectors and chunks wrap behind it, as the kernel's: a damaged store may name any."""


class Allocation:
    """The kernel's: upwards from the first data chunk, around the areas.

    A chunk that `take` gives must lie on the COW as a whole, and be neither another exception's nor
    that of the header or of an area (`AreaLayout.is_metadata`).

    Attributes:
        cow: the device, which may grow.
        layout: where areas and data chunks are, and how large a chunk is.
        next: the chunk that comes next.
    """

    def __init__(self, cow: Device, layout: AreaLayout) -> None:
        self.cow = cow
        self.layout = layout
        self.next = layout.first_data

    def found(self, chunks: Sequence[int]) -> None:
        """Learn of the chunks that an area names, in its order, when a store is read."""
        highest = max(chunks, default=-1)
        if highest == LAST_SECTOR:  # behind it the numbers begin anew
            last = len(chunks) - 1 - chunks[::-1].index(highest)
            self.next = 0
            self.found(chunks[last + 1 :])
            return
        self.next = max(self.next, highest + 1)
        if self.next and self.layout.is_metadata(self.next):
            self.next += 1

    def take(self) -> int | None:
        """Return the chunk for the next exception; None when the COW is full."""
        chunk, layout = self.next, self.layout
        if self.cow.sectors < (chunk + 1) * layout.chunk_size & LAST_SECTOR:
            return None  # a partial chunk at the end of the COW is never used
        # As Layout.after, without the call: it is made for every first write to a chunk.
        after = chunk + 1
        self.next = after + 1 if after % layout.stride == 1 else after
        return chunk

    def merged(self, area: int, left: int) -> None:
        """Learn that the exceptions behind the first `left` of an area are merged and cleared.

        The next chunk is what the order of allocation would have made of it
        (persistent_commit_merge).
        """
        self.next = self.layout.area_location(area) + left + 1

    @property
    def allocated(self) -> int:
        """How many chunks of the COW are used, header and areas included: what the status says."""
        return self.next
