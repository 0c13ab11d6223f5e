"""Exceptions joined to extents."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.cow.extents import Consecutive, join
from dmcopy.cow.extract import plan_extract
from dmcopy.cow.info import gather
from dmcopy.cow.load import load
from dmcopy.cow.store import read_store
from dmcopy.errors import MetadataError
from dmcopy.io import IoRegion
from tests.unit.cow.memory import MemoryDisk
from tests.unit.cow.stores import allocate, build

PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(2, 7)), max_size=12)


@given(PAIRS)
def test_extents_are_the_pairs_and_as_long_as_can_be(pairs: list[tuple[int, int]]) -> None:
    extents = list(join(pairs))
    assert [(old + k, new + k) for old, new, count in extents for k in range(count)] == pairs
    for one, other in itertools.pairwise(extents):
        goes_on = one.old + one.count == other.old and one.new + one.count == other.new
        assert not goes_on


def test_none_and_one() -> None:
    assert list(join([])) == []
    assert list(join([(3, 4)])) == [Consecutive(3, 4, 1)]


@pytest.mark.parametrize(
    ("sectors", "olds", "total"),
    [(40, [1, 4], 16), (35, [1, 4], 11), (35, [1, 3], 16), (35, [4], 3), (35, [], 0)],
)
def test_how_much_there_is_to_copy(sectors: int, olds: list[int], total: int) -> None:
    """The last chunk of an origin may be a short one; else the progress would not end at 100 %."""
    origin, out = MemoryDisk(bytes(sectors << 9), "origin"), MemoryDisk(bytes(sectors << 9), "out")
    cow = MemoryDisk(build(8, allocate(olds, 8), 10))
    regions = IoRegion(origin, 0, sectors), cow, IoRegion(out, 0, sectors)
    assert plan_extract(*regions, changed_only=True).total == total
    assert plan_extract(*regions).total == sectors


@pytest.mark.parametrize(("count", "areas"), [(0, 1), (31, 1), (32, 2), (33, 2), (64, 3)])
def test_a_full_area_is_followed_by_one_that_is_empty(count: int, areas: int) -> None:
    """The kernel reads it, and counts it in the metadata of its status line."""
    cow = MemoryDisk(build(1, allocate(range(count), 1), 80))
    info = gather(read_store(cow))
    assert (info.exceptions, info.areas, info.metadata) == (count, areas, areas + 1)
    assert (info.highest_old, info.total) == (count - 1, 80)


@pytest.mark.parametrize("new", [1, 34, 67])
def test_a_chunk_of_metadata_is_nobodys_whatever_is_around_it(new: int) -> None:
    """Between chunks that are not next to each other it would be read as data."""
    news = sorted([5, 9, new, 70, 73])
    cow = MemoryDisk(build(1, list(enumerate(news)), 80))
    with pytest.raises(MetadataError, match=f"said to be in chunk {new}, which holds metadata"):
        load(read_store(cow))
