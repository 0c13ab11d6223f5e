"""Regions, their states, and the worker that a mirror runs on."""

from __future__ import annotations

from typing import Any

import pytest

from dmcopy.errors import DeadlineError
from dmcopy.io import IoRegion, Reactor
from dmcopy.io.request import Io, Op
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.targets.base import Bio
from dmcopy.targets.dirty_log import CoreLog
from dmcopy.targets.region_hash import Region, RegionHash, RegionState
from dmcopy.targets.work import Requests, Worker, wait_for


class Bench:
    """A hash over a log in memory; `dispatched` gets the writes that were delayed."""

    def __init__(self, sync: str | None = None, *, max_recovery: int = 1) -> None:
        self.log = CoreLog(8, sync)
        self.wakes = 0
        self.dispatched: list[Bio] = []
        self.hash = RegionHash(
            self.log, self._wake, self.dispatched.extend, max_recovery=max_recovery
        )

    def recover(self) -> list[Region]:
        """Return the regions that can be recovered now."""
        self.hash.prepare_recovery()
        return list(iter(self.hash.next_quiesced, None))

    def _wake(self) -> None:
        self.wakes += 1


def test_a_write_makes_a_region_dirty_until_its_end_is_noted() -> None:
    bench = Bench("nosync")
    bench.hash.begin_write(3)
    bench.hash.begin_write(3)
    assert bench.hash.state(3) is RegionState.DIRTY
    bench.hash.end_write(3)
    assert (bench.hash.state(3), bench.wakes) == (RegionState.DIRTY, 0)
    bench.hash.end_write(3)
    assert (bench.hash.state(3), bench.wakes) == (RegionState.CLEAN, 1)
    bench.hash.begin_write(3)  # before the worker came
    bench.hash.update(errors_handled=True)
    assert bench.hash.state(3) is RegionState.DIRTY
    bench.hash.end_write(3)
    bench.hash.update(errors_handled=True)
    assert not bench.hash._regions


def test_a_region_that_was_clean_until_a_write_failed_is_not_noted_as_clean() -> None:
    """That would be the end of what is known of it: its legs differ."""
    bench, cleared = Bench("nosync"), list[int]()
    bench.log.clear = cleared.append  # type: ignore[assignment,method-assign]
    bench.hash.begin_write(3)
    bench.hash.end_write(3)
    bench.hash.mark_nosync(3)
    bench.hash.update(errors_handled=True)
    assert (bench.hash.state(3), cleared) == (RegionState.NOSYNC, [])
    assert bench.log.sync_count == 7


def test_a_region_that_was_clean_until_its_recovery_is_not_forgotten() -> None:
    bench, cleared = Bench("nosync"), list[int]()
    bench.log.clear = cleared.append  # type: ignore[assignment,method-assign]
    bench.hash.begin_write(3)
    bench.hash.end_write(3)
    bench.log.set_in_sync(3, False)
    bench.hash.start_recovery()
    (region,) = bench.recover()
    bench.hash.update(errors_handled=True)
    assert (bench.hash.state(3), cleared) == (RegionState.RECOVERING, [])
    bench.hash.end_recovery(region, well=True)
    bench.hash.update(errors_handled=True)
    assert (bench.hash.state(3), cleared) == (RegionState.CLEAN, [3])


def test_regions_are_recovered_one_at_a_time_and_upwards() -> None:
    bench = Bench()
    bench.hash.prepare_recovery()
    assert bench.hash.next_quiesced() is None  # not yet allowed
    bench.hash.start_recovery()
    for number in range(8):
        bench.hash.prepare_recovery()
        region = bench.hash.next_quiesced()
        assert region is not None
        assert (region.number, bench.hash.state(number)) == (number, RegionState.RECOVERING)
        bench.hash.prepare_recovery()
        assert bench.hash.next_quiesced() is None
        bench.hash.end_recovery(region, well=number != 5)
        bench.hash.update(errors_handled=True)
    assert bench.log.sync_count == 7
    bench.hash.prepare_recovery()
    assert bench.hash.recovering == 0  # number 5 is tried again at the next resume


def test_several_regions_are_recovered_at_a_time_and_upwards() -> None:
    bench = Bench(max_recovery=3)
    assert bench.recover() == []  # not yet allowed
    bench.hash.start_recovery()
    first = bench.recover()
    assert [region.number for region in first] == [0, 1, 2]
    assert bench.recover() == []
    for region, well in ((first[2], True), (first[0], False)):  # in whatever order they end
        bench.hash.end_recovery(region, well=well)
    assert bench.recover() == []  # the worker has not told the log yet
    bench.hash.update(errors_handled=True)
    assert bench.hash.recovering == 1
    second = bench.recover()
    assert [region.number for region in second] == [3, 4]
    bench.hash.stop_recovery()
    for region in (*second, first[1]):
        bench.hash.end_recovery(region, well=True)
    bench.hash.update(errors_handled=True)
    assert bench.recover() == []
    assert (bench.hash.recovering, bench.log.sync_count) == (0, 4)
    assert bench.hash.state(0) is RegionState.NOSYNC
    bench.hash.start_recovery()
    assert [region.number for region in bench.recover()] == [5, 6, 7]
    assert bench.hash.state(0) is RegionState.NOSYNC  # it is tried again at the next resume


def test_writes_to_several_regions_in_recovery_come_back_with_their_own() -> None:
    bench = Bench(max_recovery=8)
    bench.hash.start_recovery()
    regions = bench.recover()
    bios: list[Any] = [object() for _ in regions]
    for region, bio in zip(regions, bios, strict=True):
        bench.hash.delay(region.number, bio)
    for number in (6, 2):
        bench.hash.end_recovery(regions[number], well=number == 6)
    bench.hash.update(errors_handled=True)
    assert bench.dispatched == [bios[6], bios[2]]
    states = [bench.hash.state(number) for number in (6, 2, 3)]
    assert states == [RegionState.CLEAN, RegionState.NOSYNC, RegionState.RECOVERING]


def test_a_region_that_waits_for_writes_holds_up_those_behind_it() -> None:
    bench = Bench(max_recovery=4)
    bench.hash.begin_write(1)
    bench.hash.begin_write(1)
    bench.hash.start_recovery()
    assert [region.number for region in bench.recover()] == [0]
    assert (bench.hash.recovering, bench.hash.state(1)) == (2, RegionState.RECOVERING)
    bench.hash.end_write(1)
    assert bench.recover() == []
    bench.hash.end_write(1)
    assert [region.number for region in bench.recover()] == [1, 2, 3]


@pytest.mark.parametrize("how", ["a write fails", "a flush failed"])
def test_a_failure_before_a_recovery_begins_lets_those_behind_it_go_on(how: str) -> None:
    bench = Bench(max_recovery=2)
    bench.hash.begin_write(0)
    bench.hash.start_recovery()
    bio: Any = object()
    assert bench.recover() == []
    bench.hash.delay(0, bio)
    if how == "a write fails":
        bench.hash.mark_nosync(0)
    else:
        bench.hash.flush_failure = True
    bench.hash.end_write(0)
    assert (bench.hash.recovering, bench.hash.state(0)) == (0, RegionState.NOSYNC)
    assert bench.dispatched == [bio]
    assert [region.number for region in bench.recover()] == [1, 2]


def test_the_end_of_another_recovery_does_not_end_the_waiting() -> None:
    """Which regions are out of sync after a crash would hang on the order of the copies."""
    bench = Bench(max_recovery=3)
    bench.hash.begin_write(1)
    bench.hash.start_recovery()
    (first,) = bench.recover()
    bench.hash.end_recovery(first, well=True)
    bench.hash.update(errors_handled=True)
    assert bench.recover() == []
    bench.hash.end_write(1)
    assert [region.number for region in bench.recover()] == [1, 2, 3]


def test_writes_to_a_region_in_recovery_are_delayed_and_come_back() -> None:
    bench = Bench()
    bench.hash.start_recovery()
    bench.hash.prepare_recovery()
    region = bench.hash.next_quiesced()
    assert region is not None
    bio: Any = object()
    bench.hash.delay(0, bio)
    bench.hash.end_recovery(region, well=True)
    assert bench.dispatched == []
    bench.hash.update(errors_handled=True)
    assert bench.dispatched == [bio]
    assert bench.hash.state(0) is RegionState.CLEAN


def test_a_recovery_waits_for_the_writes_under_way() -> None:
    bench = Bench()
    bench.hash.begin_write(0)
    assert bench.hash.state(0) is RegionState.NOSYNC
    bench.hash.start_recovery()
    bench.hash.prepare_recovery()
    assert bench.hash.next_quiesced() is None
    bench.hash.end_write(0)
    assert bench.hash.next_quiesced() is not None


@pytest.mark.parametrize("how", ["a write fails", "a flush failed"])
def test_a_failure_before_a_recovery_begins_ends_it(how: str) -> None:
    bench = Bench()
    bench.hash.begin_write(0)
    bench.hash.start_recovery()
    bench.hash.prepare_recovery()
    assert bench.hash.recovering == 1
    if how == "a write fails":
        bench.hash.mark_nosync(0)
    else:
        bench.hash.flush_failure = True
    bench.hash.end_write(0)
    # Or a suspend would wait for it for ever.
    assert (bench.hash.recovering, bench.hash.state(0)) == (0, RegionState.NOSYNC)
    assert bench.hash.next_quiesced() is None


def test_a_worker_runs_again_when_woken_while_it_waits() -> None:
    with Reactor(SimulatedBackend(1)) as reactor:
        disk = SimulatedDisk(8)
        runs: list[list[int]] = []

        async def work() -> None:
            if not runs:
                worker.wake()
                worker.wake()
            flushes = [Io(Op.FLUSH, IoRegion(disk, 0, 0)) for _ in range(3)]
            runs.append(await Requests(reactor, flushes))

        worker = Worker(reactor, work)
        worker.wake()
        worker.wake()
        assert not worker.idle
        reactor.run_until(lambda: worker.idle, 1)
        assert runs == [[0, 0, 0]] * 2


def test_work_that_raises_is_told_and_may_be_woken_again() -> None:
    with Reactor(SimulatedBackend(1)) as reactor:
        told: list[Exception] = []
        reactor.on_exception = told.append
        runs: list[int] = []

        async def work() -> None:
            runs.append(1)
            if len(runs) == 1:
                worker.wake()
            await Requests(reactor, [Io(Op.FLUSH, IoRegion(SimulatedDisk(8), 0, 0))])
            if len(runs) < 3:
                raise ValueError(len(runs))

        worker = Worker(reactor, work)
        worker.wake()
        reactor.run_until(lambda: worker.idle, 1)
        assert [str(error) for error in told] == ["1", "2"]
        worker.wake()
        reactor.run_until(lambda: worker.idle, 1)
        assert (len(runs), len(told)) == (3, 2)


def test_waiting_for_work_has_a_deadline() -> None:
    with Reactor(SimulatedBackend(1)) as reactor:
        disk = SimulatedDisk(8)
        disk.fail(Op.FLUSH, 0, 8)

        async def work() -> list[int]:
            await Requests(reactor, [])
            return await Requests(reactor, [Io(Op.FLUSH, IoRegion(disk, 0, 0))])

        assert wait_for(reactor, work(), "a flush") == [5]

        async def endless() -> None:
            lost = Io(Op.FLUSH, IoRegion(disk, 0, 0))
            waiting = Requests(reactor, [lost])
            lost.notify = None
            await waiting

        reactor.on_exception = lambda _: None
        with pytest.raises(DeadlineError, match="for an end"):
            wait_for(reactor, endless(), "an end")
