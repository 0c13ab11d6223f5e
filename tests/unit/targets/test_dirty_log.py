"""The disk log by itself: what is durable when it says so."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from dmcopy.io import Reactor
from dmcopy.io.request import Op
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.ondisk.mirror_log import MirrorLog
from dmcopy.targets.dirty_log import DiskLog
from dmcopy.targets.work import wait_for

REGIONS = 64


class Bench:
    """A log of regions that are all clean, on a simulated disk."""

    def __init__(self, regions: int = REGIONS) -> None:
        self.backend = SimulatedBackend(5)
        self.reactor = Reactor(self.backend)
        self.disk = SimulatedDisk(8, "l")
        self.legs_flush = True
        self.events = 0
        self.log = DiskLog(
            self.reactor, self.disk, lambda disk: disk.path, regions, "nosync", self._flush_legs,
            self._event,
        )  # fmt: skip
        wait_for(self.reactor, self.log.resume(), "the log")

    def flush(self) -> bool:
        return wait_for(self.reactor, self.log.flush(), "the log")

    def dirty_after_power_cuts(self) -> list[set[int]]:
        """Return the regions that are dirty after each of some power cuts now."""
        cuts = (self.backend.outcomes([self.disk], random.Random(n)) for n in range(16))
        return [set(MirrorLog.parse(cut.content()).dirty()) for (cut,) in cuts]

    async def _flush_legs(self) -> bool:
        return self.legs_flush

    def _event(self) -> None:
        self.events += 1


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    with made.reactor:
        yield made
        made.log.close()


def test_a_region_is_dirty_for_ever_before_it_is_written(bench: Bench) -> None:
    bench.log.mark(3)
    assert bench.flush()
    assert bench.dirty_after_power_cuts() == [{3}] * 16


def test_a_flush_that_failed_is_tried_again(bench: Bench) -> None:
    """Without that a power cut could lose the bit of a write that has reached one leg only."""
    bench.log.mark(3)
    bench.disk.fail(Op.FLUSH, 0, 1, times=1)
    assert not bench.flush()
    assert (bench.log.status(), bench.events) == ("3 disk l F", 1)
    assert bench.flush()
    assert bench.dirty_after_power_cuts() == [{3}] * 16
    assert (bench.log.status(), bench.events) == ("3 disk l F", 1)


def test_a_write_of_the_log_that_failed_is_tried_again(bench: Bench) -> None:
    bench.log.mark(3)
    bench.disk.fail(Op.WRITE, 0, 8, times=1)
    assert not bench.flush()
    assert (bench.log.status(), bench.events) == ("3 disk l D", 1)
    assert bench.flush()
    assert bench.dirty_after_power_cuts() == [{3}] * 16


def test_nothing_is_written_when_nothing_has_changed(bench: Bench) -> None:
    assert bench.flush()
    before = bench.disk.writes
    assert bench.flush()
    assert bench.disk.writes == before


@pytest.mark.parametrize(("regions", "writes"), [(64, 0), (65, 1), (127, 1), (128, 0)])
def test_the_first_flush_writes_a_log_whose_regions_end_within_a_word(
    regions: int, writes: int
) -> None:
    """disk_resume in dm-log.c clears the bits behind the last region, which counts as a change.

    It is what the kernel's mirror does with its log: a power cut, a log of writes and a table that
    counts them see the same write from either engine.
    """
    bench = Bench(regions)
    with bench.reactor:
        assert bench.flush()
        bench.log.sync = None
        wait_for(bench.reactor, bench.log.resume(), "the log")
        before = bench.disk.writes
        assert bench.flush()
        assert bench.disk.writes - before == writes
        assert bench.flush()
        assert bench.disk.writes - before == writes, "and then no more"
        bench.log.close()


def test_after_the_legs_failed_a_flush_no_region_is_ever_clean_again(bench: Bench) -> None:
    bench.log.clear(3)
    bench.legs_flush = False
    assert bench.flush()
    bench.legs_flush = True
    bench.log.clear(3)
    assert bench.flush()
    assert bench.dirty_after_power_cuts() == [set(range(REGIONS))] * 16


def test_a_mirror_that_resumes_takes_the_log_for_the_truth(bench: Bench) -> None:
    bench.log.mark(3)
    assert bench.flush()
    bench.log.sync = None
    wait_for(bench.reactor, bench.log.resume(), "the log")
    assert (bench.log.sync_count, bench.log.in_sync[3]) == (REGIONS - 1, False)
    assert bench.log.next_resync() == 3
    assert bench.log.next_resync() is None  # each region is tried once
