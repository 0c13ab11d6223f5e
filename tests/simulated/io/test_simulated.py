"""The simulation itself: its cache, its power cuts, its clock, and that a seed replays."""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.errors import DeadlineError
from dmcopy.io import CopyIo, Io, IoRegion, Memory, Op, Reactor
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from tests.simulated.instant import InstantBackend


def write(disk: SimulatedDisk, sector: int, byte: int, memory: Memory, *, fua: bool = False) -> Io:
    memory.fill(((0, 512),), bytes([byte]) * 512)
    return Io(Op.WRITE, IoRegion(disk, sector, 1), memory, ((0, 512),), fua=fua)


def run(reactor: Reactor, request: Any) -> Any:
    done: list[Any] = []
    request.notify = done.append
    reactor.submit(request)
    reactor.run_until(lambda: done, 10, "a request")
    return request


@given(st.integers(0, 1 << 32))
def test_what_was_flushed_survives(seed: int) -> None:
    disk, memory, reactor = SimulatedDisk(8), Memory(1), Reactor(SimulatedBackend(seed))
    run(reactor, write(disk, 0, 1, memory))
    run(reactor, Io(Op.FLUSH, IoRegion(disk, 0, 0)))
    run(reactor, write(disk, 1, 2, memory))
    run(reactor, write(disk, 2, 3, memory, fua=True))
    run(reactor, write(disk, 0, 4, memory))
    assert [disk.content[n << 9] for n in range(3)] == [4, 2, 3]
    disk.crash(random.Random(seed))
    after = [disk.content[n << 9] for n in range(3)]
    assert after[0] in (1, 4)
    assert after[1] in (0, 2)
    assert after[2] == 3


def test_a_power_cut_loses_keeps_and_tears() -> None:
    """Over a few seeds, a write of two sectors that was never flushed ends in each way there is."""
    ends = set()
    for seed in range(60):
        disk = SimulatedDisk(2)
        disk.write(0, b"\1" * 1024)
        disk.crash(random.Random(seed))
        ends.add((disk.content[0], disk.content[512]))
    assert ends == {(0, 0), (1, 1), (0, 1), (1, 0)}


def test_a_flush_covers_what_came_before_it() -> None:
    """A write that is submitted after the flush is not made durable by it."""
    lost = 0
    for seed in range(100):
        disk, memory, reactor = SimulatedDisk(8), Memory(2), Reactor(SimulatedBackend(seed))
        run(reactor, write(disk, 0, 1, memory))
        flush, later = Io(Op.FLUSH, IoRegion(disk, 0, 0)), write(disk, 1, 2, memory)
        done: list[Any] = []
        flush.notify = later.notify = done.append
        reactor.submit(flush)
        reactor.submit(later)
        reactor.run_until(lambda done=done: len(done) == 2, 10, "both")  # type: ignore[misc]
        disk.crash(random.Random(seed))
        assert disk.content[0] == 1
        lost += disk.content[512] == 0
    assert lost


def test_requests_in_flight_at_a_power_cut_are_never_answered() -> None:
    backend = SimulatedBackend(3)
    disk, memory, reactor = SimulatedDisk(8), Memory(1), Reactor(backend)
    request = write(disk, 0, 1, memory)
    done: list[Any] = []
    request.notify = done.append
    reactor.submit(request)
    backend.power_cut([disk])
    with pytest.raises(DeadlineError, match="never happens"):
        reactor.run_until(lambda: done)


def test_the_same_seed_is_the_same_history() -> None:
    def history(seed: int) -> list[tuple[int, float]]:
        disk, memory, reactor = SimulatedDisk(64), Memory(1), Reactor(SimulatedBackend(seed))
        said: list[tuple[int, float]] = []
        for sector in range(32):
            read = Io(Op.READ, IoRegion(disk, sector, 1), memory, ((0, 512),))
            read.notify = lambda request: said.append((request.sector, reactor.time()))
            reactor.submit(read)
        reactor.run_until(lambda: len(said) == 32, 10, "all reads")
        return said

    assert history(5) == history(5)
    assert history(5) != history(6)
    assert [sector for sector, _ in history(5)] != list(range(32)), "requests overtake each other"


def test_faults_hit_by_range_kind_and_count() -> None:
    disk, memory, reactor = SimulatedDisk(64), Memory(1), Reactor(SimulatedBackend())
    disk.fail(Op.READ, 8, 8, times=2, error=errno.EREMOTEIO)
    extents = ((0, 512),)

    def read(sector: int) -> int:
        return int(run(reactor, Io(Op.READ, IoRegion(disk, sector, 1), memory, extents)).error)

    assert [read(7), read(8), read(16), read(15), read(15)] == [0, 121, 0, 121, 0]
    assert run(reactor, write(disk, 8, 1, memory)).error == 0
    disk.fail(Op.FLUSH, 0, 1)
    assert run(reactor, Io(Op.FLUSH, IoRegion(disk, 0, 0))).error == errno.EIO


def test_a_copy_to_several() -> None:
    source, memory, reactor = SimulatedDisk(8), Memory(1), Reactor(SimulatedBackend(4))
    source.load(bytes(range(256)) * 16)
    dests = [SimulatedDisk(8) for _ in range(3)]
    dests[1].fail(Op.WRITE, 0, 1)
    copy = CopyIo(
        IoRegion(source, 0, 8), [IoRegion(d, 0, 8) for d in dests], memory, ((0, 4096),), print
    )
    run(reactor, copy)
    assert copy.write_errors == {1: errno.EIO}
    assert dests[0].content == dests[2].content == source.content


def test_time_passes_only_for_timers_and_io() -> None:
    reactor = Reactor(SimulatedBackend())
    said: list[float] = []
    reactor.call_later(3600, lambda: said.append(reactor.time()))
    reactor.run_until(lambda: said, 7200, "an hour")
    assert said == [3600]


@pytest.mark.parametrize(
    ("place", "hit"), [((7, 1), False), ((7, 2), True), ((11, 1), True), ((12, 1), False)]
)
def test_a_fault_is_where_it_is(place: tuple[int, int], hit: bool) -> None:
    disk = SimulatedDisk(64)
    fault = disk.fail(Op.READ, 8, 4, times=2)
    request = Io(Op.READ, IoRegion(disk, *place))
    assert [fault.hits(request) for _ in range(3)] == [hit, hit, False]
    assert fault.times == (0 if hit else 2)
    assert not fault.hits(Io(Op.WRITE, IoRegion(disk, *place)))


def test_a_twin_goes_on_by_itself() -> None:
    disk = SimulatedDisk(8, "disk", logical_block_size=4096)
    disk.write(0, b"a" * 512)
    disk.flush()
    disk.write(1, b"b" * 512)
    twin = disk.twin()
    assert (twin.path, twin.sectors, twin.logical_block_size) == ("disk", 8, 4096)
    assert (twin.content, twin.writes) == (disk.content, 2)
    twin.write(2, b"c" * 512)
    twin.flush()
    assert (disk.read(2, 1), disk.writes) == (bytes(512), 2)
    disk.crash(random.Random(0))
    assert disk.read(0, 1) == twin.read(0, 1) == b"a" * 512
    twin.crash(random.Random(0))
    assert twin.read(1, 2) == b"b" * 512 + b"c" * 512, "what was flushed is there"
    assert disk.writes == 2, "a crash forgets no number of a write"


def test_every_request_takes_its_time_and_is_a_step() -> None:
    """Were some done in no time, no deadline would pass; power cuts are counted in steps."""
    backend = SimulatedBackend(2)
    disk, memory, reactor = SimulatedDisk(8), Memory(1), Reactor(backend)
    took: list[float] = []
    for _ in range(200):
        began = reactor.time()
        run(reactor, write(disk, 0, 1, memory))
        took.append(reactor.time() - began)
    assert backend.steps == 200
    assert 9.9e-6 < min(took) < 20e-6
    assert 1e-3 < max(took) < 2.1e-3


def test_it_is_busy_while_a_request_is_in_flight() -> None:
    backend = SimulatedBackend(1)
    reactor, request = Reactor(backend), write(SimulatedDisk(8), 0, 1, Memory(1))
    done: list[Any] = []
    request.notify = done.append
    assert backend.busy is False
    reactor.submit(request)
    assert backend.busy is True
    reactor.run_until(lambda: done, 10, "a request")
    assert backend.busy is False


def test_the_clock_advances_by_a_wait_that_ends_before_the_request_does() -> None:
    """Or a wait with a deadline would never come to it while a slow request is under way."""
    backend = SimulatedBackend(1)
    reactor, disk, memory = Reactor(backend), SimulatedDisk(8), Memory(1)
    done: list[Any] = []
    request = write(disk, 0, 1, memory)
    request.notify = done.append
    reactor.submit(request)
    reactor.step(0)
    waits = 0
    while not done:
        before = reactor.time()
        reactor.step(1e-7)
        assert reactor.time() > before
        waits += 1
        assert waits < 1_000_000
    assert waits > 1


def test_an_outcome_is_what_a_crash_would_leave_and_changes_nothing() -> None:
    """Explorers look at very many outcomes of one moment: none may be one that no crash has."""
    disk = SimulatedDisk(8, "disk", logical_block_size=1024)
    disk.write(0, b"a" * 512)
    disk.flush()
    disk.write(0, b"b" * 1024)
    disk.write(1, b"c" * 512, durable=True)
    disk.write(2, b"d" * 2048)
    before, contents = bytes(disk.content), dict[Any, bytes]()
    for seed in range(100):
        outcome, crashed = disk.outcome((), random.Random(seed)), disk.twin()
        crashed.crash(random.Random(seed))
        left = bytes(outcome.content())
        assert left == bytes(crashed.content)
        assert contents.setdefault(outcome.state, left) == left, "the same state, the same content"
        cut = outcome.disk()
        assert (cut.path, cut.sectors, cut.logical_block_size) == ("disk", 8, 1024)
        cut.write(7, b"z" * 512)
        cut.crash(random.Random(seed))
        assert cut.read(0, 7) == left[: 7 << 9]
    assert len(contents) > 10
    assert (bytes(disk.content), disk.writes) == (before, 4)
    disk.flush()
    assert disk.outcome((), random.Random(0)).content() == before


def test_a_write_in_flight_is_lost_kept_or_torn_and_goes_on() -> None:
    backend = SimulatedBackend(3)
    disk, other, memory = SimulatedDisk(8, "one"), SimulatedDisk(8, "other"), Memory(1)
    reactor, done = Reactor(backend), list[Any]()
    memory.fill(((0, 1024),), b"ab" * 512)
    write = Io(Op.WRITE, IoRegion(disk, 2, 2), memory, ((0, 1024),), done.append)
    zero = Io(Op.WRITE_ZEROES, IoRegion(other, 0, 1), notify=done.append)
    disk.load(b"d" * 4096)
    other.load(b"o" * 4096)
    reactor.submit(write)
    reactor.submit(Io(Op.READ, IoRegion(disk, 0, 2), memory, ((2048, 1024),), done.append))
    reactor.submit(zero)
    lefts, zeroed, states = set[bytes](), set[int](), dict[Any, bytes]()
    for seed in range(60):
        one, two = backend.outcomes([disk, other], random.Random(seed))
        left = bytes(one.content())
        assert states.setdefault(one.state, left) == left
        lefts.add(left[2 << 9 : 4 << 9])
        assert left[: 2 << 9] + left[4 << 9 :] == b"d" * 3072, "a read in flight leaves nothing"
        (alone,) = backend.outcomes([disk], random.Random(seed))
        assert alone.content() == left, "whatever is in flight on disks not asked about"
        zeroed.add(two.content()[0])
        cut = [one.disk() for one in backend.outcomes([disk, other], random.Random(seed))]
        assert [bytes(one.content) for one in cut] == [left, bytes(two.content())]
    new, old = b"ab" * 256, b"d" * 512
    assert lefts == {new + new, new + old, old + new, old + old}
    assert zeroed == {0, ord("o")}
    reactor.run_until(lambda: len(done) == 3, 10, "all of it")
    assert disk.read(2, 2) == new + new
    assert (
        backend.outcomes([disk], random.Random(0))[0].state
        == disk.outcome((), random.Random(0)).state
    ), "nothing is in flight"


def test_an_instant_disk_does_all_in_order_and_its_clock_only_waits() -> None:
    backend = InstantBackend()
    disk, memory, reactor = SimulatedDisk(8), Memory(1), Reactor(backend)
    done: list[Any] = []
    requests = [
        write(disk, 0, 1, memory),
        Io(Op.FLUSH, IoRegion(disk, 0, 0), notify=done.append),
        Io(Op.READ, IoRegion(disk, 0, 1), memory, ((512, 512),), done.append),
    ]
    requests[0].notify = done.append
    for request in requests:
        reactor.submit(request)
    reactor.run_until(lambda: len(done) == 3, 10, "all of it")
    assert done == requests
    assert reactor.time() == 0
    assert memory.read(((512, 512),)) == b"\1" * 512
    disk.crash(random.Random(0))
    assert disk.content[0] == 1, "the flush was one"
    disk.write(1, b"2" * 512)
    behind = write(disk, 2, 3, memory)
    behind.preflush = True
    run(reactor, behind)
    disk.crash(random.Random(0))
    assert (disk.content[512], reactor.time()) == (ord("2"), 0)
    reactor.step(3)
    assert reactor.time() == 3
    with pytest.raises(DeadlineError, match="never happens"):
        reactor.step(None)
    reactor.submit(write(disk, 1, 1, memory))
    reactor.close()
    assert backend.poll(0) == []
