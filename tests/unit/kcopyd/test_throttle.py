"""The kernel's throttle, on a clock of our own."""

from __future__ import annotations

import pytest

from dmcopy.errors import UsageError
from dmcopy.io import IoRegion, Reactor
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.kcopyd import Client, Throttle
from dmcopy.kcopyd.throttle import MAX_SLEEPS, WINDOW_SECONDS


def test_holds_back_what_was_busy_for_too_long() -> None:
    throttle = Throttle(50)
    assert not throttle.must_wait(0.0, 0)
    throttle.in_flight += 1
    throttle.account(0.1)
    throttle.in_flight -= 1
    assert throttle.must_wait(0.1, 0), "busy for all of the time"
    assert throttle.must_wait(0.15, 1)
    assert not throttle.must_wait(0.2, 2), "busy for half of the time"


def test_no_request_sleeps_for_ever() -> None:
    throttle = Throttle(1)
    throttle.must_wait(0.0, 0)
    throttle.in_flight += 1
    assert throttle.must_wait(1.0, 0)
    assert not throttle.must_wait(1.0, MAX_SLEEPS)


def test_a_hundred_percent_is_no_limit() -> None:
    """Not even by a rounding: 100 * 0.119 / 100 is less than 0.119."""
    for seconds in (1.0, 0.119, 0.167, 0.173):
        throttle = Throttle()
        throttle.account(0.0)
        throttle.in_flight += 1
        assert not throttle.must_wait(seconds, 0)


@pytest.mark.parametrize("percent", [0, -5, 101])
def test_what_is_no_percentage_is_refused(percent: int) -> None:
    with pytest.raises(UsageError, match="from 1 to 100"):
        Throttle(percent)


def test_two_clients_share_one() -> None:
    """With the same work, a throttle of 20 % takes longer on the virtual clock than none."""
    seconds = []
    for throttle in (Throttle(100), Throttle(20)):
        reactor = Reactor(SimulatedBackend(1))
        source, dest = SimulatedDisk(4096, "source"), SimulatedDisk(4096, "dest")
        clients = [Client(4, reactor=reactor, throttle=throttle) for _ in range(2)]
        for number, client in enumerate(clients):
            place = number * 2048
            client.copy(IoRegion(source, place, 2048), [IoRegion(dest, place, 2048)])
        for client in clients:
            client.destroy()
        seconds.append(reactor.time())
    assert seconds[1] > 2 * seconds[0]


def test_what_was_idle_may_go_on() -> None:
    throttle = Throttle(1)
    throttle.account(0.0)
    assert not throttle.must_wait(0.5, 0)


def test_the_past_is_forgotten_by_halves() -> None:
    """A second of copying does not hold back for a minute: half of it counts after a window."""
    throttle = Throttle(50)
    throttle.account(0.0)
    throttle.in_flight += 1
    throttle.account(WINDOW_SECONDS)
    throttle.in_flight -= 1
    assert throttle.must_wait(WINDOW_SECONDS * 1.45, 0), "0.5 windows of 0.95 were busy"
    assert not throttle.must_wait(WINDOW_SECONDS * 1.55, 0), "0.5 windows of 1.05 were busy"
