"""Which part of the origin has changed how much: the numbers behind the pictures."""

from __future__ import annotations

from array import array
from typing import NamedTuple

from dmcopy.cow.info import gather
from dmcopy.cow.store import Store
from dmcopy.ondisk.exception_store import ENTRY_BYTES, StoreError


class Density(NamedTuple):
    """`changed[i]` of the `per_cell` chunks from i · per_cell on have changed, of `chunks` in all.

    `width` cells are a row. `chunk_size` in sectors.
    """

    chunk_size: int
    chunks: int
    per_cell: int
    width: int
    changed: array[int]

    @property
    def total(self) -> int:
        """How many chunks have changed."""
        return sum(self.changed)

    @property
    def rows(self) -> int:
        """How many rows there are; the last one may be a short one."""
        return -(-len(self.changed) // self.width)

    def share(self, cell: int) -> float:
        """Return how much of a cell has changed, from 0 to 1."""
        size = min(self.per_cell, self.chunks - cell * self.per_cell)
        return min(1.0, self.changed[cell] / size)


def measure(store: Store, *, width: int, rows: int, origin_sectors: int | None = None) -> Density:
    """Count the changed chunks by cells, at most `rows` rows of `width` cells.

    Without `origin_sectors` the origin is taken to end with its last changed chunk. Raises
    MetadataError for a chunk that is past the origin's end.
    """
    size = store.header.chunk_size
    chunks = gather(store).highest_old + 1 if origin_sectors is None else -(-origin_sectors // size)
    per_cell = max(1, -(-chunks // (width * rows)))
    changed = array("Q", bytes(8 * -(-chunks // per_cell)))
    for entries in store.entries():
        for place, old in enumerate(entries.olds):
            if old >= chunks:
                at = entries.offset + place * ENTRY_BYTES
                text = f"chunk {old} is past the end of the origin, which has {chunks} chunks"
                raise StoreError(at, text, store.path)
            changed[old // per_cell] += 1
    return Density(size, chunks, per_cell, width, changed)
