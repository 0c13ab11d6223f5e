"""One request of a workload, as a plain value."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

from dmcopy.io.request import Op
from dmcopy.units import SECTOR_SIZE


@dataclass(frozen=True)
class Access:
    """A request; `sector` and `count` in sectors, both 0 for a flush. `fua`: a durable write."""

    op: Op
    device: str
    sector: int = 0
    count: int = 0
    seed: int = 0
    fua: bool = False

    @cached_property
    def data(self) -> bytes:
        """What a write writes."""
        return random.Random(self.seed).randbytes(self.count * SECTOR_SIZE)

    def overlaps(self, other: Access) -> bool:
        """Whether the two touch the same sector of a device."""
        return (
            self.device == other.device
            and self.sector < other.sector + other.count
            and other.sector < self.sector + self.count
        )
