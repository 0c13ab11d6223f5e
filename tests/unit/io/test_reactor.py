"""What a reactor takes from the system, and how long it waits."""

from __future__ import annotations

import gc
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmcopy.block import BlockDevice
from dmcopy.errors import ClosedError, UsageError
from dmcopy.io import Io, IoRegion, Memory, Op, Reactor, probe
from dmcopy.io.parts import FlushFirst
from dmcopy.io.poller import Poller
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk


def opened() -> set[str]:
    """The descriptors there are; not the one by which that is read."""
    links = {name: f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")}
    return {name for name, link in links.items() if os.path.lexists(link)}


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("backend", ["uring", "threads"])
def test_no_descriptor_is_left_or_handed_down(backend: str, inline: bool) -> None:
    """One in a child would keep a ring, and with it the devices that it was used for."""
    if probe()[backend]:
        pytest.skip(f"{backend}: {probe()[backend]}")
    gc.collect()  # with what other tests have left
    before = opened()
    with Reactor(backend, inline=inline) as reactor:
        reactor.step()
        made = {int(name) for name in opened() - before}
        assert made
        assert not any(os.get_inheritable(fd) for fd in made)
    assert opened() == before


def test_a_step_waits_no_longer_than_it_may() -> None:
    """Not even where a timer is due only later."""
    reactor, due = Reactor(SimulatedBackend()), list[float]()
    reactor.call_later(5, lambda: due.append(reactor.time()))
    reactor.step(1)
    assert reactor.time() == 1
    reactor.step(60)
    assert due == [5]
    reactor.call_later(7, lambda: due.append(reactor.time()))
    reactor.step(None)
    assert due == [5, 12]


def test_what_is_closed_takes_nothing_and_says_so() -> None:
    """Who posts to it would else wait for ever."""
    reactor = Reactor(SimulatedBackend())
    reactor.close()
    reactor.close()
    with pytest.raises(ClosedError, match="the reactor is closed"):
        reactor.call_soon_threadsafe(print)


def test_a_reactor_is_not_waited_for_inside_of_its_own_callbacks() -> None:
    reactor, said = Reactor(SimulatedBackend()), list[bool]()

    def callback() -> None:
        said.append(reactor.in_callback)
        reactor.step()

    reactor.call_soon(callback)
    with pytest.raises(UsageError, match="inside one of its own callbacks"):
        reactor.step()
    assert (said, reactor.in_callback) == ([True], False)


def test_no_other_thread_drives_it() -> None:
    """What it calls back has no locks."""
    reactor, refused = Reactor(SimulatedBackend()), list[BaseException]()

    def drive() -> None:
        ways: list[Callable[[], object]] = [reactor.step, lambda: reactor.run_until(bool)]
        for drive_it in ways:
            try:
                drive_it()
            except UsageError as error:
                refused.append(error)

    thread = threading.Thread(target=drive)
    thread.start()
    thread.join(60)
    text = "a reactor can be driven only by the thread that made it"
    assert [str(error) for error in refused] == [text] * 2


def test_a_bell_rings_once() -> None:
    """Else a reactor that was woken would never sleep again."""
    poller = Poller()
    poller.wake()
    poller.wake()
    assert select.select([poller], [], [], 0)[0] == [poller]
    poller.wait(0)
    assert select.select([poller], [], [], 0)[0] == []
    poller.close()


def test_a_reactor_that_is_forgotten_keeps_no_descriptor() -> None:
    gc.collect()
    before = opened()
    for _ in range(20):
        Reactor(SimulatedBackend(1))
    gc.collect()
    assert opened() == before


def test_a_timer_that_was_cancelled_is_not_waited_for() -> None:
    reactor = Reactor(SimulatedBackend())
    reactor.call_later(5, lambda: None).cancel()
    assert reactor.next_due() is None
    reactor.call_later(7, lambda: None)
    assert reactor.next_due() == 7
    reactor.call_soon(lambda: None)
    assert reactor.next_due() == 0


def test_io_uring_is_taken_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is quicker for small copies, and no other test would see that it is not used."""
    monkeypatch.delenv("DMCOPY_IO", raising=False)
    with Reactor() as reactor:
        assert reactor.backend.name == ("threads" if probe()["uring"] else "uring")


def test_a_back_end_may_be_made_of_the_reactors_poller() -> None:
    made: list[Any] = []

    def make(poller: Any) -> SimulatedBackend:
        made.append(poller)
        return SimulatedBackend()

    reactor = Reactor(make)
    assert isinstance(reactor.backend, SimulatedBackend)
    assert made == [reactor._poller]


def test_a_flush_that_goes_before_a_write_is_of_no_sectors() -> None:
    """It would be past the end of a device of which every sector is in use."""
    submitted: list[Io] = []
    disk = SimulatedDisk(8)
    FlushFirst(Io(Op.WRITE, IoRegion(disk, 0, 8)), submitted.append).start()
    assert [(io.op, io.region) for io in submitted] == [(Op.FLUSH, IoRegion(disk, 0, 0))]


@pytest.mark.parametrize("how", ["call_soon", "call_before_io"])
def test_what_is_due_at_once_is_not_waited_with(how: str) -> None:
    """Each callback that asks for another would else cost a second where no I/O is under way."""
    reactor, called = Reactor(SimulatedBackend()), list[float]()
    again = reactor.call_soon
    getattr(reactor, how)(lambda: again(lambda: called.append(reactor.time())))
    reactor.step(60)
    reactor.step(60)
    assert called == [0]


def test_who_sleeps_on_the_descriptor_is_woken_by_a_request_alone(tmp_path: Path) -> None:
    """None is kept to be done by `poll`, which is not called before the descriptor is readable."""
    (tmp_path / "disk").write_bytes(bytes(4096))
    with (
        Reactor("threads", inline=True) as reactor,
        BlockDevice.open(tmp_path / "disk") as disk,
    ):
        descriptor, memory, ended = reactor.fileno(), Memory(1), list[Io]()
        for _ in range(2):
            read = Io(Op.READ, IoRegion(disk, 0, 8), memory, [(0, 4096)], ended.append)
            reactor.submit(read)
            assert select.select([descriptor], [], [], 60)[0] == [descriptor]
            reactor.run_until(lambda: ended, 10)
            assert [one.error for one in ended] == [0]
            ended.clear()


@pytest.mark.parametrize("backend", ["simulated", "uring", "threads"])
def test_a_step_with_a_limit_and_nothing_to_wait_for_ends(backend: str) -> None:
    """As a program's own loop makes one between other things, before there is any timer."""
    if backend != "simulated" and probe()[backend]:
        pytest.skip(f"{backend}: {probe()[backend]}")
    made = SimulatedBackend() if backend == "simulated" else backend
    with Reactor(made) as reactor:
        reactor.step(0.01)
        reactor.call_later(0, lambda: None).cancel()
        reactor.step(0.01)


def test_one_that_is_closed_while_another_thread_posts_says_so() -> None:
    reactor = Reactor("threads")
    reactor.close()
    reactor._closed = False  # as the other thread has seen it
    with pytest.raises(ClosedError):
        reactor.call_soon_threadsafe(lambda: None)
