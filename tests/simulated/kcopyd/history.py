"""One history of a client: seeded jobs, faults and cancels, and what must hold afterwards.

A history is played on some disks: simulated disks here, files and loop devices elsewhere.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Protocol

from dmcopy.errors import DeadlineError
from dmcopy.io import Device, IoRegion, Op, Reactor
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.kcopyd import Client, CopyJob, Flag, PreparedCallback, Throttle
from dmcopy.ranges import RangeSet

FLAGS = [
    0,
    0,
    0,
    Flag.IGNORE_ERROR,
    Flag.WRITE_SEQ,
    Flag.SPARSE,
    Flag.IGNORE_ERROR | Flag.WRITE_SEQ,
]


@dataclass
class Called:
    """What the callbacks of one job said."""

    results: list[tuple[int, int]] = field(default_factory=list)


class HistoryDisks(Protocol):
    """Where disks come from, and how a history looks at them and breaks them."""

    reactor: Reactor

    def disk(self, name: str, content: bytes, block: int) -> Device:
        """Return a disk that holds `content`."""

    def content(self, disk: Device) -> bytes:
        """Return all that a disk holds."""

    def fail(self, disk: Device, op: Op, sector: int, count: int, times: int | None) -> None:
        """Have requests fail with EIO."""


class SimulatedDisks:
    """Disks in memory."""

    def __init__(self, seed: int) -> None:
        self.reactor = Reactor(SimulatedBackend(seed))

    def disk(self, name: str, content: bytes, block: int) -> SimulatedDisk:
        """See `HistoryDisks`."""
        disk = SimulatedDisk(len(content) >> 9, name, logical_block_size=block)
        disk.load(content)
        return disk

    def content(self, disk: Any) -> bytes:
        """See `HistoryDisks`."""
        return bytes(disk.content)

    def fail(self, disk: Any, op: Op, sector: int, count: int, times: int | None) -> None:
        """See `HistoryDisks`."""
        disk.fail(op, sector, count, times=times)


class History:
    """A source disk, destinations, a client; jobs with disjoint destinations, so order is free."""

    def __init__(self, seed: int, place: HistoryDisks) -> None:
        self.rng = rng = random.Random(seed)
        self.place = place
        self.reactor = place.reactor
        self.trouble: list[BaseException] = []
        self.reactor.on_exception = self.trouble.append
        block = rng.choice((512, 512, 4096))
        self.step = block >> 9
        self.sectors = 64 * rng.randint(2, 12)
        self.source = place.disk("source", self._content(), block)
        # One block again and again: thousands of histories make their disks.
        self.before = [rng.randbytes(4096) * (self.sectors // 8) for _ in range(rng.randint(1, 4))]
        self.dests = [
            place.disk(f"dest{number}", content, block)
            for number, content in enumerate(self.before)
        ]
        self.pages = rng.choice((1, 2, 3, 5, 8, 16, 64))
        throttle = Throttle(rng.choice((100, 100, 100, 50)))
        self.client = Client(
            self.pages, reactor=self.reactor, throttle=throttle, depth=rng.choice((1, 2, 8, 32))
        )
        self.jobs: list[tuple[CopyJob, Called]] = []
        self.prepared: list[tuple[PreparedCallback, Called]] = []

    def run(self) -> None:
        """Live through it."""
        for _ in range(self.rng.choice((0, 0, 1, 3))):
            self._break_something()
        position = 0
        while position < self.sectors:
            count = min(self._length(), self.sectors - position)
            self._start_job(position, count)
            position += count
            if self.rng.random() < 0.3:
                self.reactor.step(None)
            if self.rng.random() < 0.1:
                self.rng.choice(self.jobs)[0].cancel()
        for prepared, _ in self.prepared:
            prepared.fire(1, 2)
        self.client.destroy()

    def check(self) -> None:
        """Everything that must hold when a client is destroyed."""
        assert not self.trouble, self.trouble
        statistics = self.client.statistics()
        assert statistics.pages_free == statistics.pages == self.pages
        assert statistics.jobs == statistics.waiting == statistics.in_flight == 0
        for prepared in self.prepared:
            assert prepared[1].results == [(1, 2)]
        touched = [RangeSet() for _ in self.dests]
        self.after = [self.place.content(disk) for disk in self.dests]
        self.origin = self.place.content(self.source)
        for job, called in self.jobs:
            assert called.results == [(job.read_err, job.write_err)], "exactly one callback"
            self._check_job(job, touched)
        for after, before, ranges in zip(self.after, self.before, touched, strict=True):
            for start, end in ranges.gaps(0, self.sectors):
                now = after[start << 9 : end << 9]
                assert now == before[start << 9 : end << 9], "outside of every job"

    def _check_job(self, job: CopyJob, touched: list[RangeSet]) -> None:
        assert bool(job.read_err) == bool(job.read_failures)
        failed_dests = {index for index, _ in job.write_failures}
        assert job.write_err == sum(1 << index for index in failed_dests)
        for index, dest in enumerate(job.dests):
            number = self.dests.index(dest.device)
            written = job.written(index)
            self._check_written(job, dest, written)
            maybe = written.copy()
            for failed_index, failure in job.write_failures:
                if failed_index == index:
                    start = failure.region.sector - dest.sector
                    maybe.add(start, start + failure.region.count)
            for start, end in maybe:
                touched[number].add(dest.sector + start, dest.sector + end)
            if job.ok:
                assert list(written) == ([(0, job.count)] if job.count else [])
            if not (job.read_err or job.write_err or job.cancelled):
                assert written.total() == job.count

    def _check_written(self, job: CopyJob, dest: IoRegion, written: RangeSet) -> None:
        ignores = getattr(job, "flags", 0) & Flag.IGNORE_ERROR  # WRITE_SEQ has switched it off
        for failure in () if ignores else job.read_failures:
            start = failure.region.sector - job.source.sector
            lost = (start, start + failure.region.count)
            assert list(written.gaps(*lost)) == [lost], "what was not read is not written"
        expected = bytearray(job.count << 9)
        if not job.zeroes:
            expected[:] = self.origin[job.source.sector << 9 : job.source.end << 9]
            for failure in job.read_failures:  # only IGNORE_ERROR writes there, and zeroes
                start = failure.region.sector - job.source.sector << 9
                expected[start : start + (failure.region.count << 9)] = bytes(
                    failure.region.count << 9
                )
        content = self.after[self.dests.index(dest.device)][dest.sector << 9 : dest.end << 9]
        for start, end in written:
            assert content[start << 9 : end << 9] == expected[start << 9 : end << 9], (
                "what was copied"
            )

    def _content(self) -> bytes:
        kinds = (bytes(4096), self.rng.randbytes(4096))
        return b"".join(self.rng.choice(kinds) for _ in range(self.sectors // 8))

    def _length(self) -> int:
        blocks = self.rng.choice((1, 8, 8, 8, 32, self.sectors))
        return max(self.step, blocks // self.step * self.step)

    def _start_job(self, position: int, count: int) -> None:
        rng = self.rng
        called = Called()
        dests = [IoRegion(disk, position, count) for disk in self._some_dests()]
        flags = int(rng.choice(FLAGS))
        notify = lambda read, write, context: context.results.append((read, write))  # noqa: E731
        if rng.random() < 0.05:
            self.prepared.append((self.client.prepare_callback(notify, extra := Called()), extra))
        if rng.random() < 0.15:
            job = self.client.zero(dests, flags, notify, called)
        else:
            # Usually the same place, so that neighbours can be merged.
            start = position if rng.random() < 0.7 else self._anywhere(count)
            source = IoRegion(self.source, start, count)
            job = self.client.copy(source, dests, flags, notify, called)
        assert not job.done, "never inside copy()"
        assert not called.results
        self.jobs.append((job, called))

    def _some_dests(self) -> list[Device]:
        return self.rng.sample(self.dests, self.rng.randint(1, len(self.dests)))

    def _anywhere(self, count: int) -> int:
        return self.rng.randrange(0, self.sectors - count + 1, self.step)

    def _break_something(self) -> None:
        rng = self.rng
        disk = rng.choice([self.source, *self.dests])
        op = Op.READ if disk is self.source else rng.choice((Op.WRITE, Op.WRITE_ZEROES))
        start = rng.randrange(self.sectors)
        self.place.fail(disk, op, start, rng.choice((1, 8, self.sectors)), rng.choice((1, None)))


def play(seed: int, place: HistoryDisks | None = None) -> None:
    """Live one history and check it."""
    history = History(seed, place or SimulatedDisks(seed))
    with history.reactor:  # thousands of them in one process: each gives its descriptors back
        try:
            history.run()
        except DeadlineError as error:
            raise AssertionError(f"it hangs: {history.client.statistics()}") from error
        history.check()
