"""The guard by itself: what is counted, what is refused, and when nothing can come any more."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import pytest

from dmcopy.errors import ClosedError, DeadlineError
from dmcopy.io import Io, IoRegion, Memory, Op, Reactor
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.targets.guard import Guard


class Bench:
    """A guard on a reactor of simulated disks. `said`: what happened, in order."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.reactor = Reactor(SimulatedBackend(3), stacked=True)
        self.reactor.on_exception = lambda error: self.said.append(type(error))
        self.guard = Guard(
            self.reactor, lambda error: self.say(str(error)), lambda: self.say("stopped")
        )
        self.disk = SimulatedDisk(64, "disk")

    def say(self, word: str) -> None:
        self.said.append(word)

    def write(self) -> Io:
        region = IoRegion(self.disk, 0, 8)
        io = Io(Op.WRITE, region, Memory(1), [(0, 4096)], lambda io: self.said.append(io.error))
        self.guard.submit(io)
        return io

    def fail(self) -> None:
        self.guard.call_soon(lambda: [][0])
        self.reactor.step()
        self.reactor.step()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    with made.reactor:
        yield made


FAILED = ["list index out of range", IndexError]


def test_it_stops_when_all_that_was_begun_has_ended(bench: Bench) -> None:
    bench.write()
    bench.guard.call_before_io(lambda: bench.say("before"))
    bench.fail()
    bench.reactor.run_until(lambda: "stopped" in bench.said, 10)
    assert bench.said[:2] == FAILED
    assert sorted(bench.said[2:-1], key=str) == [0, "before"]
    assert bench.disk.writes == 1


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_timer_is_waited_for_unless_it_was_cancelled(bench: Bench, cancelled: bool) -> None:
    bench.guard.call_later(1, lambda: bench.say("early"))
    bench.reactor.run_until(lambda: bench.said, 2)
    timer = bench.guard.call_later(5, lambda: bench.say("late"))
    bench.guard.call_later(2, lambda: bench.say("soon"))
    if cancelled:
        timer.cancel()
    bench.fail()
    began = bench.reactor.time()
    bench.reactor.run_until(lambda: "stopped" in bench.said, 10)
    assert bench.said == ["early", *FAILED, "soon", *["late"] * (not cancelled), "stopped"]
    assert bench.reactor.time() - began == pytest.approx(2 if cancelled else 5)


def test_one_that_was_cancelled_late_holds_nothing_up(bench: Bench) -> None:
    timer = bench.guard.call_later(5, lambda: bench.say("late"))
    bench.guard.call_later(1, timer.cancel)
    bench.fail()
    bench.reactor.run_until(lambda: "stopped" in bench.said, 3)
    assert bench.said == [*FAILED, "stopped"]


def test_after_a_failure_nothing_reaches_a_disk(bench: Bench) -> None:
    bench.guard.call_later(1, bench.write)
    bench.fail()
    bench.reactor.run_until(lambda: "stopped" in bench.said, 10)
    assert bench.said == [*FAILED, errno.EIO, "stopped"]
    assert not bench.disk.writes


def test_what_is_submitted_when_it_fails_is_the_last(bench: Bench) -> None:
    bench.guard._failed = lambda _: (bench.say("failed"), bench.write())
    bench.fail()
    bench.reactor.run_until(lambda: "stopped" in bench.said, 10)
    assert bench.said == ["failed", IndexError, 0, "stopped"]


def test_when_it_has_stopped_nothing_is_called(bench: Bench) -> None:
    bench.fail()
    assert bench.said == [*FAILED, "stopped"]
    bench.guard.call_soon(lambda: bench.say("again"))
    bench.write()
    assert bench.guard.call(lambda: bench.say("again")) is None
    with pytest.raises(DeadlineError):
        bench.reactor.run_until(lambda: False, 5)
    assert bench.said == [*FAILED, "stopped"]


def test_a_second_failure_is_told_and_changes_nothing(bench: Bench) -> None:
    bench.guard.call_later(3, lambda: dict[int, int]()[0])
    bench.guard.call_later(4, lambda: int("x"))
    bench.fail()
    bench.reactor.run_until(lambda: "stopped" in bench.said, 10)
    assert bench.said == [*FAILED, KeyError, ValueError, "stopped"]


def test_a_wait_ends_with_what_it_waits_for(bench: Bench) -> None:
    bench.guard.call_later(1, lambda: bench.say("come"))
    bench.guard.run_until(lambda: "come" in bench.said, 2)
    with pytest.raises(DeadlineError, match="waited 2 s for Godot"):
        bench.guard.run_until(lambda: False, 2, "Godot")
    bench.guard.call_later(1, lambda: [][0])
    with pytest.raises(ClosedError, match="a target has failed: it cannot wait for Godot"):
        bench.guard.run_until(lambda: False, 9, "Godot")
    bench.guard.run_until(lambda: True)


def test_a_call_from_outside_returns_or_fails(bench: Bench) -> None:
    assert bench.guard.call(max, 3, 7) == 7
    assert bench.guard.call(lambda: [][0]) is None
    bench.reactor.step()
    assert bench.said == [*FAILED, "stopped"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_fails_it_too_and_comes_out(bench: Bench, kind: type[BaseException]) -> None:
    def interrupt() -> None:
        raise kind

    bench.guard.call_soon(interrupt)
    with pytest.raises(kind):
        bench.reactor.step()
    bench.reactor.step()
    assert bench.said == ["", "stopped"]
