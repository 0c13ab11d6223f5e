"""The persistent store: what its COW fails, and what is merged next."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence

import pytest

from dmcopy.errors import DeviceError
from dmcopy.io.request import Op
from dmcopy.io.simulated import SimulatedDisk
from dmcopy.ondisk.exception_store import ENTRY, StoreHeader
from dmcopy.ondisk.exceptions import ExceptionTable
from dmcopy.table import Table
from dmcopy.targets.persistent import PersistentStore
from dmcopy.targets.work import wait_for

from .conftest import BareEngine

PER_AREA = 32
"""Exceptions in an area, which is a chunk of one sector."""
SECTORS = 256


class Bench(BareEngine):
    """A snapshot s of disk o, with chunks of one sector, on disk c."""

    def __init__(self) -> None:
        super().__init__(*(SimulatedDisk(SECTORS, name) for name in "oc"))

    def make(self, cow_sectors: int = SECTORS) -> None:
        self.disks["c"] = SimulatedDisk(cow_sectors, "c")
        self.mapper.create("s", Table.parse(f"0 {SECTORS} snapshot o c P 1"))

    def write(self, *chunks: int) -> None:
        for chunk in chunks:
            self.mapper.open("s").write(chunk, bytes([chunk]) * 512)

    def fails_to_write(self, chunk: int) -> bool:
        with pytest.raises(DeviceError) as caught:
            self.write(chunk)
        return caught.value.errno == errno.EIO

    @property
    def status(self) -> str:
        return str(self.mapper.status("s")[0].status)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as made:
        yield made


def test_an_exception_whose_entry_cannot_be_written_is_none(bench: Bench) -> None:
    """Its data is on the COW, but after a restart nothing would tell."""
    bench.make()
    bench.write(3)
    bench.disks["c"].fail(Op.WRITE, 1, 1)
    assert bench.fails_to_write(4)
    assert bench.status == "Invalid"


def test_the_cow_is_flushed_before_an_entry_is_written(bench: Bench) -> None:
    bench.make()
    bench.disks["c"].fail(Op.FLUSH, 0, 1, times=1)
    assert bench.fails_to_write(4)
    assert bench.status == "Invalid"


def test_the_next_area_must_be_zeroed_before_one_is_full(bench: Bench) -> None:
    """Else what is found there, after a restart, would be taken for exceptions."""
    bench.make()
    bench.write(*range(PER_AREA - 1))
    bench.disks["c"].fail(Op.WRITE_ZEROES, 1 + PER_AREA + 1, 1)
    assert bench.fails_to_write(PER_AREA)
    assert bench.status == "Invalid"


@pytest.mark.parametrize(("spare", "holds"), [(0, PER_AREA - 1), (1, PER_AREA)])
def test_the_last_place_of_an_area_needs_the_next_area(
    bench: Bench, spare: int, holds: int
) -> None:
    """Measured on 6.1 and 6.12."""
    bench.make(2 + PER_AREA + spare)
    bench.write(*range(holds))
    assert bench.status.split() == [f"{2 + holds + spare}/{2 + PER_AREA + spare}", str(2 + spare)]
    assert bench.fails_to_write(100)
    assert bench.status == "Invalid"


def test_areas_are_filled_one_after_the_other(bench: Bench) -> None:
    bench.make()
    chunks = [*range(0, 200, 3), 1, 4]
    bench.write(*chunks)
    before = bench.status
    bench.mapper.remove("s")
    bench.mapper.create("s", Table.parse(f"0 {SECTORS} snapshot o c P 1"))
    assert bench.status == before == "73/256 4"
    for chunk in chunks:
        assert bench.mapper.open("s").read(chunk, 1) == bytes([chunk]) * 512
    assert bench.mapper.open("s").read(2, 1) == bytes(512)


@pytest.mark.parametrize(
    ("exceptions", "run"),
    [
        ([(5, 2)], (5, 2, 1)),
        ([(5, 2), (6, 3), (7, 4)], (5, 2, 3)),
        ([(9, 2), (6, 3), (7, 4)], (6, 3, 2)),
        ([(7, 2), (6, 3)], (6, 3, 1)),
        ([(5, 4), (6, 3)], (6, 3, 1)),
        ([(5, 2), (6, 4)], (6, 4, 1)),
        ([], None),
    ],
)
def test_a_run_is_consecutive_on_both_sides(
    bench: Bench, exceptions: Sequence[tuple[int, int]], run: tuple[int, int, int] | None
) -> None:
    content = bytearray(StoreHeader(True, 1, 1).build().ljust(SECTORS << 9, b"\0"))
    for index, exception in enumerate(exceptions):
        ENTRY.pack_into(content, 512 + index * ENTRY.size, *exception)
    bench.disks["c"].load(content)
    store = PersistentStore(bench.reactor, bench.disks["c"], 1)
    assert store.load(ExceptionTable())
    assert last_runs(store, 1) == ([run] if run else [])
    store.close()


@pytest.mark.parametrize(
    ("most", "runs"),
    [
        (1, [(9, 6, 2)]),
        (2, [(9, 6, 2)]),
        (3, [(9, 6, 2), (20, 5, 1)]),
        (6, [(9, 6, 2), (20, 5, 1), (4, 3, 2)]),
        (100, [(9, 6, 2), (20, 5, 1), (4, 3, 2)]),  # 10 is in the first one already
    ],
)
def test_runs_from_the_end_as_many_as_fit_and_no_chunk_twice(
    bench: Bench, most: int, runs: list[tuple[int, int, int]]
) -> None:
    content = bytearray(StoreHeader(True, 1, 1).build().ljust(SECTORS << 9, b"\0"))
    exceptions = [(10, 2), (4, 3), (5, 4), (20, 5), (9, 6), (10, 7)]
    for index, exception in enumerate(exceptions):
        ENTRY.pack_into(content, 512 + index * ENTRY.size, *exception)
    bench.disks["c"].load(content)
    store = PersistentStore(bench.reactor, bench.disks["c"], 1)
    assert store.load(ExceptionTable())
    assert last_runs(store, most) == runs
    store.close()


@pytest.mark.parametrize(("chunk_size", "good"), [(1, 2), (16, 255)])
def test_what_lies_behind_the_end_does_not_count_when_the_end_moves_on(
    bench: Bench, chunk_size: int, good: int
) -> None:
    """A torn write of several sectors may leave later ones and lose the first."""
    sectors = 8192
    bench.disks |= {name: SimulatedDisk(sectors, name) for name in "oc"}
    size = chunk_size << 9
    content = bytearray(StoreHeader(True, 1, chunk_size).build().ljust(sectors << 9, b"\0"))
    for index in (*range(good), good + 1):
        ENTRY.pack_into(content, size + index * ENTRY.size, index, 2 + index)
    bench.disks["c"].load(content)
    for _ in range(2):
        bench.mapper.create("s", Table.parse(f"0 {sectors} snapshot o c P {chunk_size}"))
        bench.mapper.open("s").write(300 * chunk_size, bytes([7]) * size)
        bench.mapper.remove("s")
    area = bytes(bench.disks["c"].content)[size : 2 * size]
    stored = [ENTRY.unpack_from(area, 16 * index) for index in range(good + 2)]
    assert stored == [*((index, 2 + index) for index in range(good)), (300, good + 2), (0, 0)]


def last_runs(store: PersistentStore, most: int) -> list[tuple[int, int, int]]:
    runs, error = wait_for(store._reactor, store.last_runs(most), "the last runs")
    assert not error
    return list(runs)
