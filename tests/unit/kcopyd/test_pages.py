"""The page pool: a hard bound, whole pages, nothing handed out twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.errors import UsageError
from dmcopy.kcopyd.pages import Extents, PagePool


def test_takes_all_or_nothing() -> None:
    pool = PagePool(4)
    taken = pool.take(3 * 4096)
    assert taken == ((0, 3 * 4096),)
    assert pool.take(2 * 4096) is None
    assert pool.free == 1
    pool.give(taken)
    assert pool.take(4 * 4096) == ((0, 4 * 4096),)


def test_joins_neighbours_before_it_gives_pieces() -> None:
    pool = PagePool(4)
    pages = [pool.take(1 * 4096) for _ in range(4)]
    for page in (2, 0, 1):
        pool.give(pages[page] or ())
    assert pool.take(3 * 4096) == ((0, 3 * 4096),)


def test_gives_pieces_when_it_must() -> None:
    pool = PagePool(3)
    pages = [pool.take(1 * 4096) for _ in range(3)]
    pool.give(pages[0] or ())
    pool.give(pages[2] or ())
    assert sorted(pool.take(2 * 4096) or ()) == [(0, 4096), (2 * 4096, 4096)]


def test_gives_the_longest_pieces_first() -> None:
    """Each is an extent of the request: the fewer the better."""
    pool = PagePool(8)
    pages = sorted(pool.take(4096) or () for _ in range(8))
    for page in (0, 2, 4, 5):
        pool.give(pages[page])
    taken = pool.take(3 * 4096) or ()
    assert len(taken) == 2
    assert taken[0] == (4 * 4096, 2 * 4096)


@pytest.mark.parametrize("pages", [0, -1])
def test_less_than_a_page_is_refused(pages: int) -> None:
    with pytest.raises(UsageError, match="at least one page"):
        PagePool(pages)


@given(st.integers(1, 40), st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=80))
def test_no_page_is_out_twice(total: int, steps: list[tuple[bool, int]]) -> None:
    pool = PagePool(total)
    out: list[Extents] = []
    for take, pages in steps:
        if take:
            free = pool.free
            taken = pool.take(pages * 4096)
            assert (taken is None) == (pages > free)
            out += [taken] if taken else []
        elif out:
            pool.give(out.pop(pages % len(out)))
        held = [start + n for run in out for start, size in run for n in range(0, size, 4096)]
        assert len(held) == len(set(held)) == total - pool.free
        assert all(0 <= place < total * 4096 and place % 4096 == 0 for place in held)
    for taken in out:
        pool.give(taken)
    pool.close()
