"""What a store is said to hold, and how full its COW is."""

from __future__ import annotations

import pytest

from dmcopy.cow.info import gather
from dmcopy.cow.store import read_store
from tests.unit.cow.memory import MemoryDisk
from tests.unit.cow.stores import allocate, build

CHUNK = 2
CHUNKS = 250


@pytest.mark.parametrize(
    ("exceptions", "status", "percent"),
    [(0, "4/500 4", 0.0), (1, "6/500 4", 1.2), (100, "206/500 6", 41.2)],
)
def test_how_full_a_cow_is(exceptions: int, status: str, percent: float) -> None:
    cow = build(CHUNK, allocate(range(exceptions), CHUNK), CHUNKS)
    info = gather(read_store(MemoryDisk(cow)))
    assert (info.exceptions, info.status) == (exceptions, status)
    assert info.percent == pytest.approx(percent)
