"""A merge whose power is cut at any step: the snapshot is not lost, and the next run continues."""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass

import pytest

from dmcopy.cow import merge as merging
from dmcopy.cow.check import check
from dmcopy.cow.merge import plan_merge
from dmcopy.cow.moving import Mover
from dmcopy.cow.store import read_store
from dmcopy.errors import DeviceError
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device, IoRegion
from dmcopy.io.request import Op, Request
from dmcopy.io.simulated import SimulatedBackend
from tests.unit.cow.memory import MemoryDisk
from tests.unit.cow.stores import allocate, build, overlay, scattered

HISTORIES = 150
ORIGIN_SECTORS = 123  # the last chunk of 2 sectors is a short one
EXCEPTIONS = {1: 100, 2: 62}


class PowerCutError(Exception):
    """The machine went off."""


class Backend(SimulatedBackend):
    """A back end whose power, and that of all disks, is cut after some steps."""

    def __init__(self, seed: int, steps: int, disks: list[MemoryDisk]) -> None:
        super().__init__(seed)
        self._left = steps
        self._disks = disks

    def poll(self, timeout: float | None) -> list[Request]:
        self._left -= 1
        if self._left < 0:
            self.power_cut(self._disks)
            raise PowerCutError
        return super().poll(timeout)


@dataclass
class Bench:
    """An origin and a COW, and what the snapshot reads as."""

    origin: MemoryDisk
    cow: MemoryDisk
    chunk_size: int
    content: bytes

    @classmethod
    def make(cls, seed: int) -> Bench:
        rnd = random.Random(seed)
        chunk_size = rnd.choice((1, 2))
        origin = rnd.randbytes(ORIGIN_SECTORS * 512)
        olds = scattered(EXCEPTIONS[chunk_size], -(-ORIGIN_SECTORS // chunk_size), seed)
        pairs = allocate(olds, chunk_size)
        cow = build(chunk_size, pairs, 140, seed=seed)
        content = overlay(origin, cow, chunk_size, pairs)
        return cls(MemoryDisk(origin, "origin"), MemoryDisk(cow), chunk_size, content)

    def snapshot(self) -> bytes:
        """Return what the snapshot reads as now; the store has to be sound."""
        assert not check(self.cow, origin_sectors=ORIGIN_SECTORS).errors
        pairs = [
            pair
            for entries in read_store(self.cow).entries()
            for pair in zip(entries.olds, entries.news, strict=True)
        ]
        return overlay(bytes(self.origin.content), bytes(self.cow.content), self.chunk_size, pairs)

    def merge(self, seed: int, steps: int, mover_type: type[Mover] = Mover) -> bool:
        """Merge, and cut the power after `steps` steps; return whether that came too late."""
        with Reactor(Backend(seed, steps, [self.origin, self.cow])) as reactor:
            plan = plan_merge(IoRegion(self.origin, 0, ORIGIN_SECTORS), self.cow)
            try:
                plan.run(mover_type(reactor, self.origin, chunk_size=self.chunk_size))
                assert plan.merged == plan.exceptions
            except PowerCutError:
                return False
        return True


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "BATCH_BYTES", 10 << 10)


def run_history(seed: int, mover_type: type[Mover] = Mover) -> None:
    """Cut the power again and again, each time a little later, until the merge gets through."""
    bench, rnd = Bench.make(seed), random.Random(seed)
    done, attempt = False, 0
    while not done:
        attempt += 1
        steps = rnd.randrange(1, 100 + 40 * attempt)
        done = bench.merge(seed * 1000 + attempt, steps, mover_type)
        assert bench.snapshot() == bench.content, f"seed {seed}, attempt {attempt}"
        assert attempt < 100
    assert bytes(bench.origin.content) == bench.content
    bench.cow.crash(rnd)  # what was reported as done is durable
    bench.origin.crash(rnd)
    assert bytes(bench.origin.content) == bench.content
    assert not list(read_store(bench.cow).entries())


def run_histories(mover_type: type[Mover] = Mover) -> None:
    for seed in range(HISTORIES):
        run_history(seed, mover_type)


def test_power_cuts() -> None:
    run_histories()


class Forgetful(Mover):
    """Does not flush the origin before it clears the entries: a bug that the kernel had, too."""

    def flush(self, device: Device) -> None:
        if device.path != "origin":
            super().flush(device)


class Careless(Mover):
    """Does not flush the COW when the merge is done."""

    def flush(self, device: Device) -> None:
        if device.path == "origin":
            super().flush(device)


@pytest.mark.parametrize("mutant", [Forgetful, Careless])
def test_these_tests_can_fail(mutant: type[Mover]) -> None:
    with pytest.raises(AssertionError):
        run_histories(mutant)


@pytest.mark.parametrize(
    ("disk", "op"),
    [("cow", Op.READ), ("origin", Op.WRITE), ("origin", Op.FLUSH), ("cow", Op.WRITE)],
)
def test_an_error_stops_it_and_nothing_is_lost(disk: str, op: Op) -> None:
    bench = Bench.make(3)
    failing = bench.cow if disk == "cow" else bench.origin
    fault = failing.fail(op, 20, 60)
    with pytest.raises(DeviceError) as caught:
        bench.merge(1, 100_000)
    assert caught.value.errno == errno.EIO
    assert caught.value.path == disk
    assert bench.snapshot() == bench.content
    failing.faults.remove(fault)
    assert bench.merge(2, 100_000)
    assert bytes(bench.origin.content) == bench.content
