"""A client against a model, step by step: hypothesis finds the shortest way to a difference."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from dmcopy.io import IoRegion, Op, Reactor
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.kcopyd import Client, CopyJob, Flag

SLOTS = 24
SLOT = 16  # sectors: two sub-jobs of the smallest pool


class ClientMachine(RuleBasedStateMachine):
    """Each job writes a slot of its own, so the model needs no order between jobs."""

    jobs = Bundle("jobs")

    @initialize(seed=st.integers(0, 1 << 32), pages=st.integers(1, 20), depth=st.integers(1, 8))
    def start(self, seed: int, pages: int, depth: int) -> None:
        self.reactor = Reactor(SimulatedBackend(seed))
        self.errors: list[BaseException] = []
        self.reactor.on_exception = self.errors.append
        self.source = SimulatedDisk(SLOTS * SLOT, "source")
        self.source.load(b"".join(bytes([1 + n % 255]) * 512 for n in range(SLOTS * SLOT)))
        self.dests = [SimulatedDisk(SLOTS * SLOT, f"dest{n}") for n in range(3)]
        self.pages = pages
        self.client = Client(pages, reactor=self.reactor, depth=depth)
        self.next_slot = 0
        self.called: dict[int, list[tuple[int, int]]] = {}
        self.destroyed = False

    @rule(
        target=jobs,
        source=st.integers(0, SLOTS - 1),
        fan=st.integers(1, 3),
        count=st.integers(0, SLOT),
        flags=st.sampled_from([0, Flag.IGNORE_ERROR, Flag.WRITE_SEQ, Flag.SPARSE]),
        zero=st.booleans(),
    )
    def copy(self, source: int, fan: int, count: int, flags: int, zero: bool) -> Any:
        if self.destroyed or self.next_slot == SLOTS:
            return None
        slot, self.next_slot = self.next_slot, self.next_slot + 1
        dests = [IoRegion(disk, slot * SLOT, count) for disk in self.dests[:fan]]
        if zero:
            job = self.client.zero(dests, flags, self._notify, slot)
        else:
            origin = IoRegion(self.source, source * SLOT, count)
            job = self.client.copy(origin, dests, flags, self._notify, slot)
        assert not job.done
        return slot, job

    @rule(
        op=st.sampled_from([Op.READ, Op.WRITE]),
        slot=st.integers(0, SLOTS - 1),
        times=st.integers(1, 3),
    )
    def break_something(self, op: Op, slot: int, times: int) -> None:
        disk = self.source if op == Op.READ else self.dests[slot % 3]
        disk.fail(op, slot * SLOT, SLOT, times=times)

    @rule(job=jobs)
    def cancel(self, job: Any) -> None:
        if job is not None:
            job[1].cancel()

    @rule(steps=st.integers(1, 10))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.reactor.step(0.01)

    @rule(job=jobs)
    def wait(self, job: Any) -> None:
        if job is not None:
            slot, copy = job
            copy.wait(10)
            self._check(slot, copy)

    @rule()
    def destroy(self) -> None:
        self.client.destroy(10)
        self.destroyed = True

    @invariant()
    def pages_are_bounded(self) -> None:
        if hasattr(self, "client"):
            statistics = self.client.statistics()
            assert 0 <= statistics.pages_free <= self.pages
            assert not self.errors
            if not statistics.jobs:
                assert statistics.pages_free == self.pages

    def teardown(self) -> None:
        if hasattr(self, "client"):
            self.client.destroy(10)
            assert self.client.statistics().jobs == 0
            assert all(len(results) == 1 for results in self.called.values())
            assert len(self.called) == self.next_slot

    def _notify(self, read_err: int, write_err: int, slot: int) -> None:
        self.called.setdefault(slot, []).append((read_err, write_err))

    def _check(self, slot: int, job: CopyJob) -> None:
        assert self.called[slot] == [(job.read_err, job.write_err)]
        for index, dest in enumerate(job.dests):
            content = self.dests[index].read(dest.sector, dest.count)
            for start, end in job.written(index):
                for sector in range(start, end):
                    now = content[sector << 9 : sector + 1 << 9]
                    assert now == self._expected(job, sector)

    def _expected(self, job: CopyJob, sector: int) -> bytes:
        if job.zeroes:
            return bytes(512)
        place = job.source.sector + sector
        for failure in job.read_failures:
            if failure.region.sector <= place < failure.region.end:
                return bytes(512)
        return self.source.read(place, 1)


TestClientMachine = ClientMachine.TestCase
TestClientMachine.settings = settings(max_examples=150, stateful_step_count=30)
