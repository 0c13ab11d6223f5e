"""Snapshots: what must wait for what, seen with requests that are held on their way."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from dmcopy.errors import DeadlineError
from dmcopy.io import IoRegion, Reactor
from dmcopy.io.request import Io, Memory, Op, Request
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.mapper.userspace import UserMapper
from dmcopy.table import Table

SECTORS = 256
CHUNK = 8


class HoldingBackend(SimulatedBackend):
    """Keeps back the requests with one memory, until they are let go."""

    def __init__(self) -> None:
        super().__init__(3)
        self.memory: Memory | None = None
        self.held: list[Request] = []

    def submit(self, request: Request) -> None:
        if self.memory is not None and getattr(request, "memory", None) is self.memory:
            self.held.append(request)
        else:
            super().submit(request)

    def let_go(self) -> None:
        self.memory = None
        held, self.held = self.held, []
        for request in held:
            self.submit(request)


class Bench:
    """An origin o over disk a, and its snapshots s on b and t on c; disk a holds dots."""

    def __init__(self) -> None:
        self.disks = {name: SimulatedDisk(2 * SECTORS, name) for name in "abc"}
        self.disks["a"].load(b"." * (2 * SECTORS << 9))
        self.backend = HoldingBackend()
        self.reactor = Reactor(self.backend, stacked=True)
        self.mapper = UserMapper(self.reactor, open_device=lambda path, _write: self.disks[path])

    def make(self, name: str, words: str) -> None:
        self.mapper.create(name, Table.parse(f"0 {SECTORS} {words}"))

    def snapshots(self, *words: str) -> None:
        """Make the snapshots, s and t, and the origin above them."""
        for name, more in zip("st", words, strict=False):
            self.make(name, f"snapshot a {'b' if name == 's' else 'c'} {more}")
        self.make("o", "snapshot-origin a")

    def start(self, op: Op, name: str, sector: int, letter: str = "", count: int = CHUNK) -> Io:
        """Begin a request; its `context` becomes True when it has ended."""

        def ended(request: Io) -> None:
            request.context = True

        memory = Memory(-(-count // 8))
        if letter:
            memory.view[: count << 9] = letter.encode() * (count << 9)
        region = IoRegion(self.mapper.open(name), sector, count)
        request = Io(op, region, memory, [(0, count << 9)], ended)
        self.reactor.submit(request)
        return request

    def hold(self, op: Op, name: str, sector: int, letter: str = "") -> Io:
        """Begin a request that does not get to its disk until `backend.let_go`."""
        request = Io(op, IoRegion(self.mapper.open(name), sector, CHUNK), Memory(1))
        self.backend.memory = request.memory
        assert request.memory is not None
        request.extents = [(0, CHUNK << 9)]
        if letter:
            request.memory.view[: CHUNK << 9] = letter.encode() * (CHUNK << 9)
        request.notify = lambda done: setattr(done, "context", True)
        self.reactor.submit(request)
        self.settle()
        assert self.backend.held
        return request

    def settle(self) -> None:
        """Let everything happen that happens by itself."""
        with pytest.raises(DeadlineError):
            self.reactor.run_until(lambda: False, 1.0)

    def status(self, name: str) -> str:
        return str(self.mapper.status(name)[0].status)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    with made.reactor, made.mapper:
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
