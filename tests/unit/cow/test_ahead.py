"""Work done ahead of its turn: in order, not too far ahead, errors and threads in their place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dmcopy.cow import ahead as ahead_module
from dmcopy.cow.ahead import ALONE, DEPTH, THREADS, ahead


@pytest.fixture(autouse=True)
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take everything for slow, as what a disk does is."""
    monkeypatch.setattr(ahead_module, "QUICK_SECONDS", -1.0)


def count(taken: list[int], end: int) -> Iterator[int]:
    for number in range(end):
        taken.append(number)
        yield number


@pytest.mark.parametrize("end", [0, 1, ALONE, ALONE + 1, 500])
def test_everything_comes_in_order(end: int) -> None:
    assert list(ahead(str, range(end))) == [str(number) for number in range(end)]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_it_goes_on_where_no_thread_can_be_started(
    only_threads: Callable[[int], None], threads: int
) -> None:
    """What cannot be done ahead is done in its turn."""
    only_threads(threads)
    assert list(ahead(str, range(100))) == [str(number) for number in range(100)]


def test_no_more_is_taken_than_is_done_ahead() -> None:
    taken: list[int] = []
    results = ahead(str, count(taken, 1000))
    for wanted in range(ALONE):
        assert next(results) == str(wanted)
        assert taken == list(range(wanted + 1))  # nothing ahead: this may be the last one
    for wanted in range(ALONE, 100):
        assert next(results) == str(wanted)
        assert len(taken) <= wanted + DEPTH
    results.close()


def test_several_are_under_way_at_once() -> None:
    """Each waits for the others: one after the other, that would never end."""
    meeting = threading.Barrier(THREADS, timeout=60)

    def meet(number: int) -> int:
        if number >= ALONE:
            meeting.wait()
        return number

    end = ALONE + 2 * THREADS
    assert list(ahead(meet, range(end))) == list(range(end))


def test_what_has_not_begun_is_not_done_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the first area must not cost the reading of the next ones, nor Ctrl-C."""
    begun: list[int] = []
    ending, end = threading.Event(), ahead_module._Pool.__exit__

    def work(number: int) -> int:
        begun.append(number)
        if number > ALONE:
            assert ending.wait(60)
        return number

    def ended(*words: Any) -> None:
        ending.set()
        end(*words)

    monkeypatch.setattr(ahead_module._Pool, "__exit__", ended)
    results = ahead(work, range(100))
    assert [next(results) for _ in range(ALONE + 1)] == list(range(ALONE + 1))
    results.close()
    assert len(begun) <= ALONE + 1 + THREADS


@pytest.mark.parametrize("bad", [0, ALONE, ALONE + DEPTH + 1])
def test_an_error_is_raised_in_its_turn_and_ends_the_threads(bad: int) -> None:
    before = threading.active_count()

    def work(number: int) -> int:
        if number == bad:
            raise ValueError("bad")
        return number

    with pytest.raises(ValueError, match="bad"):
        list(ahead(work, range(100)))
    results = ahead(work, range(100))
    assert [next(results) for _ in range(bad)] == list(range(bad))
    results.close()
    assert threading.active_count() == before


def test_what_is_quick_is_done_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead_module, "QUICK_SECONDS", 60.0)
    monkeypatch.setattr(threading.Thread, "start", lambda _: pytest.fail("a thread was started"))
    taken: list[int] = []
    results = ahead(str, count(taken, 100))
    for wanted in range(100):
        assert next(results) == str(wanted)
        assert len(taken) == wanted + 1
    assert list(results) == []
