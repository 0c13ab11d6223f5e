"""Snapshots: what must wait for what, seen with requests that are held on their way."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Literal

import pytest

from dmcopy.errors import DeviceError
from dmcopy.io import IoRegion
from dmcopy.io.request import CopyIo, Io, Memory, Op, Request
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.ondisk.exception_store import parse_area
from dmcopy.table import Table
from dmcopy.targets.origin import SnapshotModule

from .conftest import BareEngine

SECTORS = 256
CHUNK = 8


class HoldingBackend(SimulatedBackend):
    """Keeps back the requests with one memory, or all copies, until they are let go."""

    def __init__(self) -> None:
        super().__init__(3)
        self.memories: list[Memory] = []
        self.copies = False
        self.held: list[Request] = []

    def submit(self, request: Request) -> None:
        if (self.copies and isinstance(request, CopyIo)) or any(
            request.memory is memory for memory in self.memories
        ):
            self.held.append(request)
        else:
            super().submit(request)

    def let_go(self) -> None:
        self.memories.clear()
        self.copies = False
        held, self.held = self.held, []
        for request in held:
            self.submit(request)


class Bench(BareEngine):
    """An origin o over disk a, and its snapshots s on b and t on c; disk a holds dots."""

    def __init__(self) -> None:
        self.backend = HoldingBackend()
        super().__init__(*(SimulatedDisk(2 * SECTORS, x) for x in "abc"), backend=self.backend)
        self.disks["a"].load(b"." * (2 * SECTORS << 9))

    def make(self, name: str, words: str) -> None:
        self.mapper.create(name, Table.parse(f"0 {SECTORS} {words}"))

    def snapshots(self, *words: str) -> None:
        """Make the snapshots, s and t, and the origin above them."""
        for name, more in zip("st", words, strict=False):
            self.make(name, f"snapshot a {'b' if name == 's' else 'c'} {more}")
        self.make("o", "snapshot-origin a")

    def start(
        self,
        op: Op,
        name: str,
        sector: int,
        letter: str = "",
        count: int = CHUNK,
        memory: Memory | None = None,
    ) -> Io:
        """Begin a request; its `context` becomes True when it has ended."""

        def ended(request: Io) -> None:
            request.context = True

        memory = memory or Memory(-(-count // 8))
        if letter:
            memory.view[: count << 9] = letter.encode() * (count << 9)
        region = IoRegion(self.mapper.open(name), sector, count)
        request = Io(op, region, memory, [(0, count << 9)], ended)
        self.reactor.submit(request)
        return request

    def hold(self, op: Op, name: str, sector: int, letter: str = "") -> Io:
        """Begin a request that does not get to its disk until `backend.let_go`."""
        before = len(self.backend.held)
        memory = Memory(CHUNK >> 3)
        self.backend.memories.append(memory)
        request = self.start(op, name, sector, letter, memory=memory)
        self.settle()
        assert len(self.backend.held) > before
        return request

    def status(self, name: str) -> str:
        return str(self.mapper.status(name)[0].status)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as made:
        yield made


def data_of(request: Io) -> str:
    """Return the letter that all of a request's memory holds."""
    assert request.memory is not None
    (letter,) = set(request.memory.read(request.extents))
    return chr(letter)


def test_the_origin_is_not_written_under_a_read_of_the_snapshot(bench: Bench) -> None:
    """The read went to the origin before the chunk was copied out: it must still see the old."""
    bench.snapshots("P 8")
    read = bench.hold(Op.READ, "s", 0)
    write = bench.start(Op.WRITE, "o", 0, "n")
    beside = bench.start(Op.WRITE, "o", CHUNK, "n")
    bench.settle()
    assert (write.context, beside.context) == (None, True)
    assert bench.disks["a"].read(0, CHUNK) == b"." * (CHUNK << 9)
    bench.backend.let_go()
    bench.settle()
    assert (read.context, write.context) == (True, True)
    assert data_of(read) == "."
    assert bench.disks["a"].read(0, CHUNK) == b"n" * (CHUNK << 9)


def test_the_origin_waits_for_the_last_of_several_reads(bench: Bench) -> None:
    bench.snapshots("P 8")
    bench.hold(Op.READ, "s", 0)
    bench.start(Op.READ, "s", 4, count=1)  # is not held, and ends before
    write = bench.start(Op.WRITE, "o", 0, "n")
    bench.settle()
    assert not write.context
    bench.backend.let_go()
    bench.settle()
    assert write.context


def test_a_merge_waits_for_a_write_that_is_on_its_way_to_the_cow(bench: Bench) -> None:
    """Else it would copy what was there before, and the write would be gone with the exception."""
    bench.snapshots("P 8")
    assert bench.start(Op.WRITE, "s", 0, "1") is not None
    bench.settle()
    bench.mapper.remove("o")
    bench.mapper.remove("s")
    bench.make("m", "snapshot-merge a b P 8")
    write = bench.hold(Op.WRITE, "m", 0, "2")
    bench.backend.let_go()
    bench.settle()
    assert write.context
    assert bench.status("m") == "16/512 16"
    assert bench.disks["a"].read(0, CHUNK) == b"2" * (CHUNK << 9)


@pytest.mark.parametrize(("op", "disk", "sector"), [(Op.READ, "a", 0), (Op.WRITE, "b", 16)])
def test_a_write_whose_chunk_could_not_be_copied_fails(
    bench: Bench, op: Op, disk: str, sector: int
) -> None:
    """Were it done, the rest of its chunk on the COW would be whatever was there before."""
    bench.snapshots("P 8")
    bench.disks[disk].fail(op, sector, CHUNK)
    write = bench.start(Op.WRITE, "s", 0, "n", count=1)
    bench.settle()
    assert (write.context, write.error) == (True, errno.EIO)
    assert bench.status("s") == "Invalid"


def test_a_write_of_the_origin_goes_on_when_the_copy_fails(bench: Bench) -> None:
    """The snapshot is lost, and nothing else is (measured on 6.1 and 6.12)."""
    bench.snapshots("P 8", "P 8")
    bench.disks["b"].fail(Op.WRITE, 16, CHUNK)
    write = bench.start(Op.WRITE, "o", 0, "n")
    bench.settle()
    assert (write.context, write.error) == (True, 0)
    assert (bench.status("s"), bench.status("t")) == ("Invalid", "24/512 16")
    assert bench.disks["a"].read(0, CHUNK) == b"n" * (CHUNK << 9)
    assert bench.mapper.open("t").read(0, CHUNK) == b"." * (CHUNK << 9)


def test_a_write_through_a_merge_is_copied_out_to_the_other_snapshots(bench: Bench) -> None:
    """In pieces of their chunks, which are smaller than those that are merged."""
    bench.snapshots("P 16", "P 8")
    bench.start(Op.WRITE, "s", 0, "1")
    bench.settle()
    bench.mapper.remove("o")
    bench.mapper.remove("s")
    bench.make("m", "snapshot-merge a b P 16")
    bench.settle()
    bench.mapper.open("m").write(64, b"n" * (16 << 9))
    assert bench.disks["a"].read(64, 16) == b"n" * (16 << 9)
    assert bench.mapper.open("t").read(64, 16) == b"." * (16 << 9)
    # And so is what is merged: a chunk of 16 sectors, of which one half was written.
    assert bench.disks["a"].read(0, 16) == b"1" * (8 << 9) + b"." * (8 << 9)
    assert bench.mapper.open("t").read(0, 16) == b"." * (16 << 9)


@pytest.mark.parametrize("name", ["s", "o"])
def test_with_too_many_copies_under_way_writes_wait_and_go_on(bench: Bench, name: str) -> None:
    """snapshot_cow_threshold of dm_snapshot: the copies of a snapshot beyond which writers wait."""
    bench.snapshots("P 8")
    module = bench.mapper.module(SnapshotModule)
    assert module.cow_threshold == 2048  # as in the kernel
    module.cow_threshold = 1
    for round_ in range(3):  # what is counted must be given back, or the next round hangs
        count = CHUNK if round_ == 1 else 1  # a write of a whole chunk needs no copy, and counts
        places = range(round_ * 64, round_ * 64 + 64, CHUNK)
        writes = [bench.start(Op.WRITE, name, place, "n", count=count) for place in places]
        bench.settle()
        assert [(write.context, write.error) for write in writes] == [(True, 0)] * len(writes)
    assert bench.status("s") == f"{16 + 3 * 64}/512 16"


def test_no_more_copies_are_under_way_than_may_be(bench: Bench) -> None:
    bench.snapshots("P 8")
    bench.mapper.module(SnapshotModule).cow_threshold = 1
    bench.hold(Op.WRITE, "s", 0, "1")
    bench.hold(Op.WRITE, "s", 8, "2")
    third = bench.start(Op.WRITE, "s", 16, "3")
    bench.settle()
    assert not third.context
    bench.backend.let_go()
    bench.settle()
    assert third.context


def test_a_store_in_memory_uses_the_cow_from_its_beginning_to_its_end(bench: Bench) -> None:
    bench.disks["b"] = SimulatedDisk(2 * CHUNK, "b")
    bench.snapshots("N 8")
    for number, letter in enumerate("xy"):
        bench.mapper.open("s").write(64 * number, letter.encode() * (CHUNK << 9))
        assert bench.disks["b"].read(CHUNK * number, CHUNK) == letter.encode() * (CHUNK << 9)
    assert bench.status("s") == "16/16 0"
    with pytest.raises(DeviceError):
        bench.mapper.open("s").write(128, bytes(512))
    assert bench.status("s") == "Invalid"


def test_a_third_table_on_one_cow_is_refused(bench: Bench) -> None:
    bench.make("s", "snapshot a b P 8")
    table = Table.parse(f"0 {SECTORS} snapshot a b P 8")
    for name in "tu":
        bench.mapper.create(name)
    bench.mapper.load("t", table)
    with pytest.raises(DeviceError, match="Snapshot cow pairing for exception table handover"):
        bench.mapper.load("u", table)


def test_a_handover_whose_source_goes_away_is_cancelled(bench: Bench) -> None:
    """What waited for its exceptions would show the origin's data in place of the snapshot's."""
    bench.make("s", "snapshot a b P 8")
    bench.mapper.open("s").write(0, b"1" * (CHUNK << 9))
    bench.mapper.create("t")
    bench.mapper.load("t", Table.parse(f"0 {SECTORS} snapshot a b P 8"))
    bench.mapper.remove("s")
    bench.mapper.resume("t")
    assert bench.status("t") == "Invalid"
    with pytest.raises(DeviceError):
        bench.mapper.open("t").read(0, CHUNK)
    bench.mapper.remove("t")
    bench.make("s", "snapshot a b P 8")  # nothing became of the store
    assert bench.mapper.open("s").read(0, CHUNK) == b"1" * (CHUNK << 9)


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_chunk_is_of_whole_blocks_of_both_devices(bench: Bench, name: str) -> None:
    """No part of a block can be copied or written (dm_exception_store_set_chunk_size)."""
    bench.disks[name] = SimulatedDisk(2 * SECTORS, name, logical_block_size=4096)
    with pytest.raises(DeviceError, match="not a multiple of device blocksize"):
        bench.make("s", "snapshot a b P 4")
    bench.make("s", "snapshot a b P 8")


def test_a_read_copies_nothing_out(bench: Bench) -> None:
    bench.snapshots("P 8", "P 8")
    bench.mapper.open("o").read(0, 64)
    bench.mapper.remove("o")
    bench.mapper.remove("s")
    bench.make("m", "snapshot-merge a b P 8")
    bench.mapper.open("m").read(0, 64)
    bench.settle()
    assert bench.status("t") == "16/512 16"


def scattered(bench: Bench) -> None:
    """Change the chunks 0, 8, 16 and 24 of the snapshot, and leave nothing but its store."""
    bench.snapshots("P 8")
    for chunk, letter in zip((0, 8, 16, 24), "1234", strict=True):
        bench.mapper.open("s").write(chunk * CHUNK, letter.encode() * (CHUNK << 9))
    bench.mapper.remove("o")
    bench.mapper.remove("s")


@pytest.mark.parametrize(("merge", "flushes"), [("batches", 1), ("kernel", 4)])
def test_a_merge_of_scattered_chunks(
    bench: Bench, merge: Literal["batches", "kernel"], flushes: int
) -> None:
    scattered(bench)
    bench.mapper.module(SnapshotModule).merge = merge
    flushed = []
    submit = bench.backend.submit

    def counting(request: Request) -> None:
        if isinstance(request, Io) and request.op is Op.FLUSH and request.device.path == "a":
            flushed.append(request)
        submit(request)

    bench.backend.submit = counting  # type: ignore[method-assign]
    bench.reactor.backend._submit_below = counting  # type: ignore[attr-defined]
    bench.make("m", "snapshot-merge a b P 8")
    bench.settle()
    assert len(flushed) == flushes
    assert bench.status("m") == "16/512 16"
    for chunk, letter in zip((0, 8, 16, 24), "1234", strict=True):
        assert bench.disks["a"].read(chunk * CHUNK, CHUNK) == letter.encode() * (CHUNK << 9)


@pytest.mark.parametrize("merge", ["batches", "kernel"])
def test_a_chunk_that_cannot_be_merged_stops_a_merge_where_the_kernel_stops(
    bench: Bench, merge: Literal["batches", "kernel"]
) -> None:
    """The last ones, before it, are merged; it and those that would follow are still readable."""
    scattered(bench)
    bench.mapper.module(SnapshotModule).merge = merge
    bench.disks["a"].fail(Op.WRITE, 8 * CHUNK, CHUNK)
    bench.make("m", "snapshot-merge a b P 8")
    bench.settle()
    assert bench.status("m") == "Merge failed"
    for chunk, letter in zip((0, 8, 16, 24), "1234", strict=True):
        assert bench.mapper.open("m").read(chunk * CHUNK, CHUNK) == letter.encode() * (CHUNK << 9)
    entries = parse_area(bench.disks["b"].read(CHUNK, CHUNK))
    assert entries.tolist() == [0, 2, 8, 3]


def test_writes_that_waited_for_a_merge_that_failed(bench: Bench) -> None:
    """Only what would have gone to the chunk that could not be merged fails (merge_callback)."""
    scattered(bench)
    bench.disks["a"].fail(Op.WRITE, 8 * CHUNK, CHUNK)
    bench.backend.copies = True
    bench.make("m", "snapshot-merge a b P 8")
    bench.settle()
    writes = [bench.start(Op.WRITE, "m", chunk * CHUNK, "n") for chunk in (0, 8, 16, 24)]
    bench.settle()
    assert not any(write.context for write in writes)
    bench.backend.let_go()
    bench.settle()
    assert [write.error for write in writes] == [0, errno.EIO, 0, 0]
    read = bench.mapper.open("m").read
    assert [read(chunk * CHUNK, 1)[:1] for chunk in (0, 8, 16, 24)] == [b"n", b"2", b"n", b"n"]
    assert bench.disks["a"].read(24 * CHUNK, 1)[:1] == b"n"
    assert bench.disks["b"].read(2 * CHUNK, 1)[:1] == b"n"
