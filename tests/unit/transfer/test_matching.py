"""Which destinations a map's companion is about, and what is said where it is of another copy."""

from __future__ import annotations

import pytest

from dmcopy.errors import UsageError
from dmcopy.ranges import RangeSet
from dmcopy.transfer.identity import Identity
from dmcopy.transfer.matching import Matching
from dmcopy.transfer.state import DestState, Endpoint, TransferState

SECTORS = 64
HALF = RangeSet([(0, 32)])


def place(path: str, *, doubt: str = "") -> Endpoint:
    return Endpoint(path, Identity("" if doubt else path, "", doubt), SECTORS, 0)


def matched(now: Matching, source: Endpoint | None, *dests: Endpoint) -> list[RangeSet]:
    """Return what `now`'s destinations have by the state of a copy that was half done."""
    states = tuple(DestState(dest, SECTORS, HALF, ()) for dest in dests)
    return now.with_states(TransferState(source, SECTORS, (), states), HALF)


def test_a_zeroing_resumes_by_its_map() -> None:
    dest = place("dest")
    assert matched(Matching("map", None, [dest], SECTORS), None, dest) == [HALF]


def test_zeroes_are_no_source() -> None:
    source, dest = place("source"), place("dest")
    with pytest.raises(UsageError, match="map is the map of a copy of zeroes: give another"):
        matched(Matching("map", source, [dest], SECTORS), None, dest)
    with pytest.raises(UsageError, match="map is the map of a copy of source: give another"):
        matched(Matching("map", None, [dest], SECTORS), source, dest)


def test_where_it_is_in_doubt_which_one_it_is_the_reason_is_said() -> None:
    source, dest = place("source"), place("dest", doubt="others may have its number")
    may_be = "may be another one than dest was, since others may have its number: give --trust-map"
    with pytest.raises(UsageError, match=f"map of a copy to dest, and dest {may_be}"):
        matched(Matching("map", source, [dest], SECTORS), source, dest)
    assert matched(Matching("map", source, [dest], SECTORS, trust=True), source, dest) == [HALF]
    source, dest = place("source", doubt="others may have its number"), place("dest")
    may_be = may_be.replace("dest", "source")
    with pytest.raises(UsageError, match=f"map of a copy of source, and source {may_be}"):
        matched(Matching("map", source, [dest], SECTORS), source, dest)
