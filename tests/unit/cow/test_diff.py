"""How two stores are compared: how much is read in one piece."""

from __future__ import annotations

import pytest

from dmcopy.cow.diff import _Pair, _runs
from dmcopy.cow.opening import _check_apart
from dmcopy.errors import UsageError
from dmcopy.io import IoRegion
from tests.unit.cow.memory import MemoryDisk

CHUNK_BYTES = 4096


def neighbours(count: int) -> list[_Pair]:
    return [_Pair(n, n * CHUNK_BYTES, (n + 9) * CHUNK_BYTES) for n in range(count)]


@pytest.mark.parametrize(
    ("count", "lengths"), [(1, [1]), (256, [256]), (257, [256, 1]), (600, [256, 256, 88])]
)
def test_neighbours_are_read_a_whole_mebibyte_at_a_time(count: int, lengths: list[int]) -> None:
    """Not more, whatever the store: both sides of it are in memory. Nor less, on a slow disk."""
    pairs = neighbours(count)
    runs = list(_runs(pairs, CHUNK_BYTES))
    assert [len(run) for run in runs] == lengths
    assert [pair for run in runs for pair in run] == pairs


@pytest.mark.parametrize("side", ["a", "b"])
def test_chunks_that_are_neighbours_on_one_side_only_are_read_by_themselves(side: str) -> None:
    first, second = neighbours(2)
    apart = second._replace(**{side: 77 * CHUNK_BYTES})
    assert list(_runs([first, apart], CHUNK_BYTES)) == [[first], [apart]]


def test_an_origin_of_one_sector_within_the_cow_is_refused() -> None:
    """Its first sector is the store's header, which a merge would copy data over."""
    cow = MemoryDisk(bytes(4096))
    with pytest.raises(UsageError, match="are the same storage"):
        _check_apart(cow, IoRegion(cow, 0, 1))  # type: ignore[arg-type]
