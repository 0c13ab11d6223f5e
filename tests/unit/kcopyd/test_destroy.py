"""The end of a client, from its own thread and from others: what is waited for, and what is not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dmcopy.errors import ClosedError, DeadlineError
from dmcopy.io import IoRegion, Reactor
from dmcopy.io.simulated import SimulatedDisk
from dmcopy.io.thread import ReactorThread
from dmcopy.kcopyd import Client, Throttle
from tests.unit.kcopyd.test_raising import BadThrottle

SECONDS = 60.0


def regions(sectors: int = 8) -> tuple[IoRegion, list[IoRegion]]:
    source, dest = SimulatedDisk(sectors, "source"), SimulatedDisk(sectors, "dest")
    return IoRegion(source, 0, sectors), [IoRegion(dest, 0, sectors)]


def begins(client: Client) -> list[Callable[[], object]]:
    """Return all that begins something."""
    source, dests = regions()
    return [
        lambda: client.copy(source, dests),
        lambda: client.copy_chunk(source, dests, lambda *_: None),
        lambda: client.copy_list([], dests[0].device, unit=8),
        lambda: client.zero(dests),
        lambda: client.prepare_callback(lambda *_: None),
    ]


def assert_it_takes_nothing_more(client: Client) -> None:
    for begin in begins(client):
        with pytest.raises(ClosedError, match="was destroyed"):
            begin()


@pytest.fixture
def thread() -> Iterator[ReactorThread]:
    with ReactorThread("threads") as thread:
        yield thread


def test_from_outside_it_waits_for_all_and_takes_nothing_more(thread: ReactorThread) -> None:
    client = Client(8, reactor=thread.reactor)
    said: list[int] = []
    prepared = thread.call(lambda _: client.prepare_callback(lambda *_: said.append(1)))
    with pytest.raises(DeadlineError, match=r"waited 0.01 s for the jobs of a client"):
        client.destroy(0.01)
    assert len(client.pool.memory.view[:1]) == 1, "it still has its memory"
    assert_it_takes_nothing_more(client)
    timer = threading.Timer(0.01, prepared.fire)
    timer.start()
    client.destroy(SECONDS)
    timer.join()
    assert said == [1]
    with pytest.raises(ValueError, match="released"):
        bytes(client.pool.memory.view[:1])


def test_from_outside_it_waits_for_copies_under_way(thread: ReactorThread, tmp_path: Any) -> None:
    """The last of them to end wakes who waits."""
    from dmcopy.block import BlockDevice

    size = 4 << 20
    for name in ("source", "dest"):
        (tmp_path / name).write_bytes(b"x" * size if name == "source" else bytes(size))
    source = BlockDevice.open(tmp_path / "source")
    dest = BlockDevice.open(tmp_path / "dest", write=True)
    with source, dest:
        client = Client(8, reactor=thread.reactor)
        held = threading.Event()
        thread.reactor.call_soon_threadsafe(lambda: held.wait(SECONDS))
        jobs = [
            client.copy(IoRegion(source, start, 1024), [IoRegion(dest, start, 1024)])
            for start in range(0, size >> 9, 1024)
        ]
        small = client.copy(IoRegion(source, 0, 8), [IoRegion(dest, 0, 8)])
        threading.Timer(0.01, held.set).start()
        client.destroy(SECONDS)
        assert all(job.ok for job in [*jobs, small])
    assert (tmp_path / "dest").read_bytes() == (tmp_path / "source").read_bytes()


def test_a_thread_that_ends_before_it_is_woken_has_ended_well() -> None:
    """It was awake, took what was posted, and closed its reactor before it was to be woken."""
    thread = ReactorThread("threads")
    poller = thread.reactor._poller
    wake = poller.wake

    def late() -> None:
        wake()
        thread._thread.join(SECONDS)
        wake()

    poller.wake = late  # type: ignore[method-assign]
    thread.close()
    assert not thread._thread.is_alive()


def test_from_outside_one_without_jobs_ends_immediately(thread: ReactorThread) -> None:
    client = Client(8, reactor=thread.reactor)
    client.destroy(SECONDS)
    client.destroy(SECONDS)
    assert_it_takes_nothing_more(client)


def test_one_that_waited_in_vain_takes_nothing_more(reactor: Reactor) -> None:
    client = Client(8, reactor=reactor)
    prepared = client.prepare_callback(lambda *_: None)
    with pytest.raises(DeadlineError):
        client.destroy(1)
    assert_it_takes_nothing_more(client)
    prepared.fire()
    client.destroy()


def test_a_callback_is_fired_as_a_success_unless_it_is_said(reactor: Reactor) -> None:
    said: list[tuple[int, int, Any]] = []
    with Client(8, reactor=reactor) as client:
        for words in ((), (1,), (0, 5)):
            client.prepare_callback(lambda *told: said.append(told), "context").fire(*words)
    assert said == [(0, 0, "context"), (1, 0, "context"), (0, 5, "context")]


def test_who_asks_from_another_thread_is_told_on_the_reactors(thread: ReactorThread) -> None:
    """Whether the job is done already or not: what is told may touch what the reactor's does."""
    client = Client(8, reactor=thread.reactor)
    source, dests = regions(0)
    job = client.copy(source, dests).wait(SECONDS)
    told: list[int] = []
    heard = threading.Event()

    def tell() -> None:
        told.append(threading.get_ident())
        heard.set()

    job.add_done_callback(tell)
    assert heard.wait(SECONDS)
    assert told == [thread.reactor.thread]
    client.destroy(SECONDS)


def test_one_that_was_refused_and_then_cancelled_ends_once() -> None:
    """Its end is due, but has not come: who is told of the refusal may cancel it."""
    from tests.unit.kcopyd.test_raising import Copies

    copies = Copies(BadThrottle("must_wait", 1))
    jobs: list[Any] = []
    copies.reactor.on_exception = lambda error: (copies.told.append(error), jobs[0].cancel())
    jobs.append(copies.start(8))
    jobs[0].wait(10)
    copies.end()
    assert copies.called == [(1, 1)]
    assert [failure.errno for _, failure in jobs[0].write_failures] == [5]


def test_how_many_are_in_flight_by_default(reactor: Reactor) -> None:
    source, dest = SimulatedDisk(4096, "source"), SimulatedDisk(4096, "dest")
    with Client(1024, reactor=reactor, throttle=Throttle(100)) as client:
        for start in range(0, 4096, 16):
            client.copy(IoRegion(source, start, 8), [IoRegion(dest, start, 8)])
        reactor.step(0)
        assert client.statistics().in_flight == 32
