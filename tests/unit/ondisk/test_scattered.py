"""Many pairs of numbers: what the dict and the arrays have in common is tested with the table."""

from __future__ import annotations

import pytest

from dmcopy.ondisk import scattered
from dmcopy.ondisk.scattered import Scattered


def test_it_spills_when_there_are_too_many_for_a_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scattered, "SPILL", 3)
    pairs = Scattered()
    for old in (9, 7, 5):
        pairs[old] = old + 1
    assert not pairs._buckets
    pairs[3] = 4
    assert pairs._buckets
    assert not pairs._few
    assert len(pairs) == 4
    assert sorted(pairs.items()) == [(3, 4), (5, 6), (7, 8), (9, 10)]


def test_a_number_is_not_taken_for_one_that_another_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scattered, "SPILL", 0)
    monkeypatch.setattr(scattered, "_BUCKETS", 1)
    monkeypatch.setattr(scattered, "_LAST", 0)
    pairs = Scattered()
    pairs.update([(1, 2), (3, 4)])
    assert pairs.get(2) is None
    assert pairs.get(4) is None
    assert pairs.pop(4) is None
    pairs[2] = 3
    assert [pairs.get(old) for old in (1, 2, 3)] == [2, 3, 4]
    assert pairs.pop(1) == 2
    assert sorted(pairs.items()) == [(2, 3), (3, 4)]


@pytest.mark.parametrize("step", [1, 16, 256, 1 << 19, 1 << 32])
def test_numbers_in_steps_are_spread(step: int) -> None:
    places = {
        place * step * scattered._MIX >> scattered._SHIFT & scattered._LAST for place in range(4096)
    }
    assert len(places) > 3000
