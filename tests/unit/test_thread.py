"""Threads that die before they begin."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from typing import Any

import pytest

from dmcopy import thread as thread_module
from dmcopy.cow import ahead as ahead_module
from dmcopy.cow.ahead import ahead
from dmcopy.errors import MissingError
from dmcopy.export.aside import aside
from dmcopy.io.reactor import Reactor
from dmcopy.io.thread import ReactorThread
from dmcopy.io.threads import WorkerPool
from dmcopy.thread import Thread
from tests.waiting import until


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """The threads that the system has "started", and that have died of it for all one knows."""
    held: list[Callable[[], object]] = []

    def start(bootstrap: Callable[[], object], *_: Any, **__: Any) -> int:
        held.append(bootstrap)
        return 1

    for name in ("_start_new_thread", "_start_joinable_thread"):  # the latter since Python 3.13
        if hasattr(threading, name):
            monkeypatch.setattr(threading, name, start)
    monkeypatch.setattr(thread_module, "_LOOK_SECONDS", 0.001)
    return held


def test_one_that_never_begins_is_an_error(held: list[Callable[[], object]]) -> None:
    done: list[int] = []
    with pytest.raises(MemoryError, match="died before it began"):
        Thread(lambda: done.append(1), "late").start()
    # It was only very late: what was given up is not done.
    ended = threading.Event()
    _thread.start_new_thread(lambda: (held[0](), ended.set()), ())
    until(ended.is_set, "the end of the thread")
    assert not done


def test_one_that_begins_at_the_last_moment_has_begun(
    held: list[Callable[[], object]],
) -> None:
    thread = Thread(lambda: None, "late")
    thread._started.claim()  # as its `run` does
    thread.start()
    assert len(held) == 1


@pytest.mark.usefixtures("held")
def test_all_that_use_threads_go_on_or_say_so() -> None:
    pool = WorkerPool(lambda: None)
    pool._threads.begin_one(pool._work)
    assert pool._threads.limit == len(pool._threads) == 0
    with pytest.raises(MemoryError):
        ReactorThread()
    with Reactor("threads") as reactor, pytest.raises(MissingError, match="memory"):
        aside(reactor, lambda: 1, "it", timeout=60)


@pytest.mark.usefixtures("held")
def test_work_ahead_is_done_in_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead_module, "QUICK_SECONDS", -1.0)
    assert list(ahead(str, range(20))) == [str(number) for number in range(20)]
