"""Where a persistent store puts its chunks: behind the last one, and never over an area."""

from __future__ import annotations

import pytest

from dmcopy.io.simulated import SimulatedDisk
from dmcopy.ondisk.exception_store import AreaLayout
from dmcopy.targets.allocation import LAST_SECTOR, Allocation

LAYOUT = AreaLayout(1)  # of 32 entries: the areas are chunks 1, 34, 67, …


def allocation(sectors: int = 100) -> Allocation:
    return Allocation(SimulatedDisk(sectors), LAYOUT)


def test_chunks_are_taken_upwards_without_the_areas_until_the_cow_is_full() -> None:
    made = allocation(100)
    taken = []
    while (chunk := made.take()) is not None:
        taken.append(chunk)
    assert taken == [chunk for chunk in range(2, 100) if not LAYOUT.is_metadata(chunk)]
    assert (made.take(), made.allocated) == (None, 101 if LAYOUT.is_metadata(100) else 100)


@pytest.mark.parametrize(
    ("chunks", "following"),
    [((), 2), ((2,), 3), ((2, 5, 3), 6), ((33,), 35), ((32,), 33), ((65, 66), 68), ((1,), 2)],
)
def test_what_was_found_is_continued_behind_its_highest(
    chunks: tuple[int, ...], following: int
) -> None:
    made = allocation()
    made.found(chunks)
    assert (made.allocated, made.take()) == (following, following)


def test_a_lower_one_that_is_found_later_changes_nothing() -> None:
    made = allocation()
    made.found((40,))
    made.found((7, 9))
    assert made.take() == 41


@pytest.mark.parametrize(("behind", "following"), [((), 0), ((5,), 6), ((33,), 35)])
def test_behind_the_last_number_there_is_they_begin_anew(
    behind: tuple[int, ...], following: int
) -> None:
    made = allocation()
    made.found((40, LAST_SECTOR, *behind))
    assert made.take() == following


@pytest.mark.parametrize(("area", "left"), [(0, 0), (0, 31), (1, 0), (1, 5)])
def test_a_merge_gives_back_what_was_taken_last(area: int, left: int) -> None:
    made = allocation()
    taken = [made.take() for _ in range(60)]
    made.merged(area, left)
    assert made.take() == taken[area * LAYOUT.per_area + left]


def test_a_chunk_that_is_cut_off_is_not_taken() -> None:
    layout = AreaLayout(8)
    assert Allocation(SimulatedDisk(24), layout).take() == 2
    assert Allocation(SimulatedDisk(23), layout).take() is None
