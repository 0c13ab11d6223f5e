"""What the guide shows: a snapshot that allocates from the end, a mirror that balances reads."""

from __future__ import annotations

import errno
import random
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dmcopy.errors import DeviceError
from dmcopy.io import IoRegion, Reactor
from dmcopy.io.request import Io, Memory, Op, Request
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.mapper.userspace import UserMapper
from dmcopy.ondisk.exception_store import AreaLayout
from dmcopy.table import Table
from tests.unit.targets.examples import forgotten, load

SECTORS = 2048
CHUNK = 1  # of one sector: an area has 32 entries


@pytest.fixture(scope="module", autouse=True)
def examples() -> Iterator[None]:
    with forgotten("from_end", "balanced", "lazy_log"):
        yield


class Bench:
    """An engine over simulated disks, which are called by letters."""

    def __init__(self, seed: int, *, stop: Callable[[Request], bool] = lambda _: False) -> None:
        self.disks = {name: SimulatedDisk(SECTORS, name) for name in "abcl"}
        self.stopped: list[Request] = []
        backend = SimulatedBackend(seed)
        submit = backend.submit
        backend.submit = lambda one: self.stopped.append(one) if stop(one) else submit(one)  # type: ignore[assignment,method-assign]
        self.reactor = Reactor(backend, stacked=True)
        self.mapper = self.engine()

    def engine(self) -> UserMapper:
        return UserMapper(self.reactor, open_device=lambda path, _: self.disks[path])

    def status(self, name: str) -> str:
        return str(self.mapper.status(name)[0].status)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(5)
    with made.reactor, made.mapper:
        yield made


def writes(seed: int, count: int) -> Iterator[tuple[int, bytes]]:
    rng = random.Random(seed)
    for _ in range(count):
        length = rng.randrange(1, 9)
        yield rng.randrange(256 - length), rng.randbytes(length << 9)


@pytest.mark.parametrize("store", ["P", "PO"])
def test_chunks_from_the_end_hold_what_the_kernels_do(store: str, bench: Bench) -> None:
    load("from_end")
    bench.disks["a"].load(random.Random(1).randbytes(SECTORS << 9))
    bench.mapper.create("theirs", Table.parse(f"0 256 snapshot a b {store} {CHUNK}"))
    bench.mapper.create("ours", Table.parse(f"0 256 snapshot-end a c {store} {CHUNK}"))
    bench.mapper.create("origin", Table.parse("0 256 snapshot-origin a"))
    for number, (sector, data) in enumerate(writes(2, 60)):
        for name in ("origin",) if number % 3 else ("theirs", "ours"):
            bench.mapper.open(name).write(sector, data)
    for _ in range(2):
        theirs, ours = (bench.mapper.open(name).read(0, 256) for name in ("theirs", "ours"))
        assert ours == theirs
        assert bench.status("ours") == bench.status("theirs")
        for name, target in (("theirs", "snapshot a b"), ("ours", "snapshot-end a c")):
            bench.mapper.remove(name)  # and once more, from what is on the COW
            bench.mapper.create(name, Table.parse(f"0 256 {target} {store} {CHUNK}"))
    # The kernel's own way reads the same store.
    bench.mapper.remove("ours")
    bench.mapper.create("ours", Table.parse(f"0 256 snapshot a c {store} {CHUNK}"))
    assert bench.mapper.open("ours").read(0, 256) == theirs


def test_no_chunk_from_the_end_is_given_twice_or_an_areas() -> None:
    from_end = load("from_end")
    for sectors in (*range(10), 31, 32, 33, 34, 35, 66, 67, 100):
        disk, layout = SimulatedDisk(sectors + 1, "cow"), AreaLayout(1)
        ours = from_end.FromTheEnd(disk, layout)
        theirs = from_end.Allocation(disk, layout)
        taken = list(iter(ours.take, None))
        assert sorted(taken) == list(iter(theirs.take, None))
        assert not any(map(layout.is_metadata, taken))
        again = from_end.FromTheEnd(disk, layout)
        again.found(array("Q", taken[:3]))
        assert list(iter(again.take, None)) == taken[3:]


def test_a_cow_that_fills_up_from_the_end(bench: Bench) -> None:
    load("from_end")
    bench.disks["c"] = SimulatedDisk(12, "c")
    bench.mapper.create("s", Table.parse(f"0 256 snapshot-end a c PO {CHUNK}"))
    bench.mapper.open("s").write(0, b"x" * (10 << 9))
    assert bench.status("s") == "12/12 2"
    with pytest.raises(DeviceError) as caught:
        bench.mapper.open("s").write(64, bytes(512))
    assert caught.value.errno == errno.EIO
    assert bench.status("s") == "Overflow"
    assert bench.mapper.open("s").read(0, 10) == b"x" * (10 << 9)


def test_a_store_from_the_end_is_merged(bench: Bench) -> None:
    load("from_end")
    bench.mapper.create("s", Table.parse(f"0 256 snapshot-end a c P {CHUNK}"))
    expected = bytearray(256 << 9)
    for sector, data in writes(3, 40):
        bench.mapper.open("s").write(sector, data)
        expected[sector << 9 : (sector << 9) + len(data)] = data
    bench.mapper.create("o", Table.parse("0 256 snapshot-origin a"))
    bench.mapper.suspend("o")
    bench.mapper.suspend("s")
    bench.mapper.load("o", Table.parse(f"0 256 snapshot-merge a c P {CHUNK}"))
    bench.mapper.resume("o")
    bench.reactor.run_until(lambda: bench.status("o").startswith("2/"), 60, "the merge")
    assert bench.disks["a"].read(0, 256) == bytes(expected)


def reads_of(disk: SimulatedDisk) -> Callable[[Request], bool]:
    return lambda one: isinstance(one, Io) and one.op == Op.READ and one.device is disk


def target_of(bench: Bench) -> Any:
    return bench.mapper.open("m")._only


def start(bench: Bench, count: int, done: list[Any]) -> None:
    device, memory = bench.mapper.open("m"), Memory(1)
    for number in range(count):
        region = IoRegion(device, number * 8, 8)
        bench.reactor.submit(Io(Op.READ, region, memory, [(0, 4096)], done.append))


def test_reads_go_to_the_leg_with_the_fewest_in_flight() -> None:
    load("balanced")
    slow: list[SimulatedDisk] = []
    bench = Bench(7, stop=lambda one: any(reads_of(disk)(one) for disk in slow))
    with bench.reactor, bench.mapper:
        text = "0 1024 {} core 2 64 nosync 2 a 0 b 0"
        bench.mapper.create("m", Table.parse(text.format("mirror-balanced")))
        slow.append(bench.disks["a"])
        done: list[Any] = []
        start(bench, 12, done)
        bench.reactor.run_until(lambda: len(done) == 6, 60, "the reads of the leg that answers")
        assert len(bench.stopped) == 6
        start(bench, 5, done)  # none of them to the leg that has six
        bench.reactor.run_until(lambda: len(done) == 11, 60, "the reads that came later")
        assert len(bench.stopped) == 6
        slow.clear()
        for one in bench.stopped:
            bench.reactor.backend.submit(one)
        bench.reactor.run_until(lambda: len(done) == 17, 60, "all reads")
        assert not any(io.error for io in done)
        assert set(target_of(bench).legs.reads.values()) == {0}


def test_a_leg_that_fails_is_read_no_more(bench: Bench) -> None:
    load("balanced")
    text = "0 1024 mirror-balanced core 2 64 nosync 2 a 0 b 0 1 handle_errors"
    bench.mapper.create("m", Table.parse(text))
    bench.mapper.open("m").write(0, b"m" * (64 << 9))
    bench.disks["b"].fail(Op.READ, 0, SECTORS)
    for sector in range(0, 64, 8):
        assert bench.mapper.open("m").read(sector, 8) == b"m" * 4096
    done: list[Any] = []
    start(bench, 8, done)
    bench.reactor.run_until(lambda: len(done) == 8, 60, "the reads")
    assert not any(io.error for io in done)
    assert bench.status("m") == "2 a b 16/16 1 AR 1 core"


@pytest.mark.parametrize("target", ["mirror", "mirror-lazy"])
def test_a_lazy_log_writes_less_and_is_whole_when_suspended(target: str) -> None:
    load("lazy_log")
    bench: Bench
    written: list[Request] = []

    def count(one: Request) -> bool:
        if isinstance(one, Io) and one.op == Op.WRITE and one.device is bench.disks["l"]:
            written.append(one)
        return False

    bench = Bench(5, stop=count)
    with bench.reactor, bench.mapper:
        bench.mapper.create("m", Table.parse(f"0 1024 {target} disk 3 l 8 nosync 2 a 0 b 0"))
        written.clear()
        for sector in range(0, 512, 8):
            bench.mapper.open("m").write(sector, bytes(512))
        bench.reactor.run_until(lambda: target_of(bench).work.idle, 60)
        marked = len(written)
        assert marked == 64 if target == "mirror-lazy" else marked > 64
        bench.mapper.suspend("m")
        assert bench.disks["l"].read(2, 1)[:16] == b"\xff" * 16
        assert len(written) > marked or target == "mirror"
