"""What a job and its client say was done, to the sector, and which sizes a client chooses."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from dmcopy.errors import UsageError
from dmcopy.io import IoRegion, Op, Reactor
from dmcopy.io.simulated import SimulatedDisk
from dmcopy.kcopyd import Client, CopyJob, Flag, Move, subjob
from dmcopy.kcopyd.merged import neighbours
from dmcopy.kcopyd.moves import GAP_SECTORS, MAX_EXTENTS
from dmcopy.kcopyd.pages import PagePool
from dmcopy.kcopyd.subjob import ZERO_SLICE_SECTORS
from dmcopy.kcopyd.throttle import MAX_SLEEPS

SECTORS = 64
SUB_JOB = 8
OLD = (b"old" * (SECTORS << 9))[: SECTORS << 9]


def disks(count: int) -> list[SimulatedDisk]:
    """Return a source, half of it zeroes, and destinations that hold something else."""
    made = [SimulatedDisk(SECTORS, f"disk{number}") for number in range(count)]
    made[0].load(b"x" * (SECTORS << 8) + bytes(SECTORS << 8))
    for dest in made[1:]:
        dest.load(OLD)
    return made


def whole(disk: SimulatedDisk, count: int = SECTORS) -> IoRegion:
    return IoRegion(disk, 0, count)


@pytest.mark.parametrize("fan", [1, 3])
@pytest.mark.parametrize("flags", [0, Flag.IGNORE_ERROR, Flag.WRITE_SEQ, Flag.SPARSE])
@pytest.mark.parametrize("count", [0, 1, SUB_JOB, SUB_JOB + 1, SECTORS])
def test_a_copy_counts_what_it_read_and_wrote(
    reactor: Reactor, fan: int, flags: int, count: int
) -> None:
    source, *dests = disks(1 + fan)
    with Client(64, reactor=reactor, sub_job_sectors=SUB_JOB) as client:
        job = client.copy(whole(source, count), [whole(dest, count) for dest in dests], flags)
        assert job.progress() == (0,) * fan
        assert job.wait(10).ok
        assert job.progress() == (count,) * fan
        assert [job.written(index).total() for index in range(fan)] == [count] * fan
        assert not job.cancel()
        assert job.ok, "what is done cannot be cancelled"
        found = client.statistics()
    assert (found.sectors_read, found.sectors_written) == (count, fan * count)
    assert (found.jobs, found.jobs_done, found.waiting, found.in_flight) == (0, 1, 0, 0)
    assert all(dest.read(0, count) == source.read(0, count) for dest in dests)


@pytest.mark.parametrize("count", [1, SUB_JOB, SECTORS])
def test_a_zeroing_reads_nothing(reactor: Reactor, count: int) -> None:
    _, *dests = disks(3)
    dests[0].fail(Op.READ, 0, SECTORS)
    with Client(1, reactor=reactor) as client:
        job = client.zero([whole(dest, count) for dest in dests]).wait(10)
        found = client.statistics()
    assert job.ok
    assert (found.sectors_read, found.sectors_written) == (0, 2 * count)


def test_neighbours_count_each_for_itself(reactor: Reactor) -> None:
    source, dest = disks(2)
    with Client(64, reactor=reactor) as client:
        for sector in range(0, 40, 8):
            client.copy(IoRegion(source, sector, 8), [IoRegion(dest, sector, 8)])
        client.copy_list([Move(source, 40, 40, 24)], dest, unit=8).wait(10)
    found = client.statistics()
    assert (found.sectors_read, found.sectors_written) == (SECTORS, SECTORS)
    assert (found.jobs_done, found.merged) == (6, 5)


@pytest.mark.parametrize("flags", [0, Flag.WRITE_SEQ, Flag.SPARSE])
@pytest.mark.parametrize("count", [SUB_JOB, SECTORS])
def test_what_was_not_read_was_not_written(reactor: Reactor, flags: int, count: int) -> None:
    """Nor are there zeroes: that is for those who ask for IGNORE_ERROR."""
    source, dest = disks(2)
    source.fail(Op.READ, 0, 1)
    before = dest.read(0, SUB_JOB)
    with Client(64, reactor=reactor, sub_job_sectors=SUB_JOB) as client:
        job = client.copy(whole(source, count), [whole(dest, count)], flags).wait(10)
        found = client.statistics()
    assert (job.read_err, job.write_err) == (1, 0)
    assert [failure.region for failure in job.read_failures] == [whole(source, SUB_JOB)]
    assert dest.read(0, SUB_JOB) == before
    assert list(job.written(0).gaps(0, SUB_JOB)) == [(0, SUB_JOB)]
    assert job.progress() == (job.written(0).total(),)
    assert found.sectors_written == job.written(0).total()
    content = dest.read(0, SECTORS)
    for start, end in job.written(0).gaps(0, SECTORS):
        assert content[start << 9 : end << 9] == OLD[start << 9 : end << 9]


@pytest.mark.parametrize("flags", [0, Flag.WRITE_SEQ, Flag.SPARSE])
def test_one_destination_of_two_fails(reactor: Reactor, flags: int) -> None:
    source, good, bad = disks(3)
    bad.fail(Op.WRITE, 0, 1)
    with Client(64, reactor=reactor) as client:
        job = client.copy(whole(source), [whole(good), whole(bad)], flags).wait(10)
        found = client.statistics()
    assert (job.read_err, job.write_err) == (0, 2)
    assert [(index, one.errno) for index, one in job.write_failures] == [(1, errno.EIO)]
    assert job.progress() == (SECTORS, 0)
    assert (found.sectors_read, found.sectors_written) == (SECTORS, SECTORS)


@pytest.mark.parametrize("flags", [0, Flag.IGNORE_ERROR, Flag.WRITE_SEQ, Flag.SPARSE])
@pytest.mark.parametrize("zeroes", [False, True])
def test_cancelled_is_no_failure_and_nothing_more_of_it_is_begun(
    reactor: Reactor, monkeypatch: pytest.MonkeyPatch, flags: int, zeroes: bool
) -> None:
    """Also where errors are ignored: who cancels does not mean an error."""
    monkeypatch.setattr(subjob, "ZERO_SLICE_SECTORS", SUB_JOB)
    source, dest = SimulatedDisk(1024, "source"), SimulatedDisk(1024, "dest")
    regions = IoRegion(source, 0, 1024), [IoRegion(dest, 0, 1024)]
    with Client(16, reactor=reactor, sub_job_sectors=SUB_JOB) as client:
        job = client.zero(regions[1], flags) if zeroes else client.copy(*regions, flags)
        reactor.step(0)
        assert job.cancel()
        job.wait(1000)
    assert job.cancelled
    assert not job.ok
    assert (job.read_err, job.write_err, job.write_failures) == (0, 0, ())
    assert job.progress()[0] <= 8 * SUB_JOB


def test_one_that_waits_is_cancelled_without_a_trace(reactor: Reactor) -> None:
    source, dest = disks(2)
    said: list[Any] = []
    with Client(1, reactor=reactor) as client:
        client.copy(IoRegion(source, 0, 8), [IoRegion(dest, 0, 8)])
        job = client.copy(
            IoRegion(source, 16, 8), [IoRegion(dest, 16, 8)], 0, lambda *words: said.append(words)
        )
        reactor.step(0)
        assert job.cancel()
        assert not said, "never inside cancel()"
        job.wait(10)
    assert said == [(0, 0, None)]
    assert (job.cancelled, job.ok, job.write_failures) == (True, False, ())
    assert job.progress() == (0,)
    assert dest.read(16, 8) == OLD[16 << 9 : 24 << 9]
    assert client.statistics().sectors_written == 8


def test_after_an_error_at_most_what_was_cut_is_done(reactor: Reactor) -> None:
    """Eight slices at the start, and one more for each that ended before the error was known."""
    source, dest = SimulatedDisk(1 << 13, "source"), SimulatedDisk(1 << 13, "dest")
    source.fail(Op.READ, 0, 1)
    with Client(64, reactor=reactor, sub_job_sectors=SUB_JOB) as client:
        job = client.copy(IoRegion(source, 0, 1 << 13), [IoRegion(dest, 0, 1 << 13)]).wait(1000)
    assert job.written(0).total() < 64 * SUB_JOB


@pytest.mark.parametrize(
    ("pages", "wanted", "sectors"),
    [
        # A quarter of the pool, in whole pages and at least one, up to the kernel's 512 KiB.
        *[(1, None, 8), (4, None, 8), (7, None, 8), (8, None, 16), (64, None, 128)],
        *[(511, None, 1016), (512, None, 1024), (1 << 14, None, 1024)],
        *[(1, 8, 8), (1024, 8, 8), (1024, 2048, 2048), (1024, 1024, 1024)],
        *[(4, 2048, 32), (1, 1024, 8)],  # never more than the pool
    ],
)
def test_the_longest_request(
    reactor: Reactor, pages: int, wanted: int | None, sectors: int
) -> None:
    with Client(pages, reactor=reactor, sub_job_sectors=wanted) as client:
        assert client.sub_job_sectors == sectors


def test_what_is_bounded_elsewhere() -> None:
    """A throttle's sleeps by the kernel, a request's extents by writev(2), of which each may be in
    two runs of pages, and what is read in vain by what a request costs."""
    assert MAX_SLEEPS == 10  # dm-kcopyd.c, MAX_SLEEPS
    assert os.sysconf("SC_IOV_MAX") >= 2 * MAX_EXTENTS
    assert GAP_SECTORS << 9 == 32 << 10


@pytest.mark.parametrize(("block", "fits"), [(4096, True), (8192, True), (16384, False)])
def test_a_slice_holds_a_block_of_every_device(reactor: Reactor, block: int, fits: bool) -> None:
    """What is shorter than that could not be read or written; what is as long can."""
    source = SimulatedDisk(SECTORS, "source", logical_block_size=block)
    dest = SimulatedDisk(SECTORS, "dest")
    for one, other in ((source, dest), (dest, source)):
        with Client(4, reactor=reactor, sub_job_sectors=16) as client:
            if fits:
                assert client.copy(whole(one), [whole(other)]).wait(10).ok
            else:
                with pytest.raises(UsageError, match=f"less than one block of {source.path}"):
                    client.copy(whole(one), [whole(other)])


@pytest.mark.parametrize("count", [1, 3, 8, 9, 17])
@pytest.mark.parametrize("flags", [0, Flag.WRITE_SEQ])
def test_data_begins_on_a_page(reactor: Reactor, count: int, flags: int) -> None:
    """Past the page cache, what begins elsewhere in memory is refused."""
    source, dest = disks(2)
    extents: list[Any] = []
    submit = reactor.submit

    def watch(request: Any) -> None:
        assert sum(length for _, length in request.extents) == request.bytes
        extents.extend(request.extents)
        submit(request)

    reactor.submit = watch
    with Client(16, reactor=reactor) as client:
        client.copy(whole(source, count), [whole(dest, count)], flags)
    assert extents
    assert not [start for start, _ in extents if start % 4096]


def test_a_zeroing_is_cut_at_16_mib(reactor: Reactor) -> None:
    """It takes no pages; what is in flight can still be told, and cancelled, piece by piece."""
    dest = SimulatedDisk(3 * ZERO_SLICE_SECTORS + 8, "dest")
    counts: list[int] = []
    submit = reactor.submit

    def watch(request: Any) -> None:
        counts.append(request.count)
        submit(request)

    reactor.submit = watch
    with Client(1, reactor=reactor) as client:
        client.zero([IoRegion(dest, 0, dest.sectors)])
    assert counts == [16 << 11] * 3 + [8]


@pytest.mark.parametrize(("block", "zeroed"), [(512, [(8, 8)]), (16384, [(32, 32)])])
def test_sparse_looks_at_whole_blocks_of_the_destination(
    reactor: Reactor, block: int, zeroed: list[tuple[int, int]]
) -> None:
    """And at no less than 4 KiB: a sector of zeroes within costs a request more than it saves."""
    source = SimulatedDisk(SECTORS, "source")
    dest = SimulatedDisk(SECTORS, "dest", logical_block_size=block)
    content = bytearray(b"x" * (SECTORS << 9))
    first = 8 if block == 512 else 32
    content[512:1024] = bytes(512)
    content[first << 9 : 2 * first << 9] = bytes(first << 9)
    source.load(content)
    dest.load(b"y" * (SECTORS << 9))
    found: list[tuple[int, int]] = []
    submit = reactor.submit

    def watch(request: Any) -> None:
        request.region.check()
        if request.op == Op.WRITE_ZEROES:
            found.append((request.sector, request.count))
        submit(request)

    reactor.submit = watch
    with Client(64, reactor=reactor, sub_job_sectors=SECTORS) as client:
        client.copy(whole(source), [whole(dest)], Flag.SPARSE)
    assert found == zeroed
    assert dest.content == source.content


def a_copy(source: IoRegion, *dests: IoRegion) -> CopyJob:
    return CopyJob(None, source, dests, None, None)  # type: ignore[arg-type]


def test_neighbours_are_those_that_follow_on_both_sides() -> None:
    one, other, to, off = (SimulatedDisk(SECTORS, name) for name in ("one", "other", "to", "off"))

    def region(device: SimulatedDisk, sector: int, count: int = 8) -> IoRegion:
        return IoRegion(device, sector, count)

    first = a_copy(region(one, 0), region(to, 16))
    follows = a_copy(region(one, 8), region(to, 24))
    assert neighbours([first, follows], 8192) == [first, follows]
    assert neighbours([first, follows], 8191) == [first], "no longer than the limit"
    assert neighbours([first], 4095) == []
    for strange in (
        a_copy(region(one, 16), region(to, 24)),
        a_copy(region(one, 0), region(to, 24)),
        a_copy(region(other, 8), region(to, 24)),
        a_copy(region(one, 8), region(to, 32)),
        a_copy(region(one, 8), region(to, 8)),
        a_copy(region(one, 8), region(off, 24)),
        a_copy(region(one, 8), region(to, 24), region(off, 24)),
    ):
        assert neighbours([first, strange, follows], 1 << 20) == [first]
    fan = a_copy(region(one, 0), region(to, 16), region(off, 16))
    assert neighbours([fan, follows], 1 << 20) == [fan]
    for alone in (first, follows):
        alone.alone = True
        assert neighbours([first, follows], 1 << 20) == [first]
        alone.alone = False


def test_a_merged_request_is_no_longer_than_any_other(reactor: Reactor) -> None:
    source, dest = disks(2)
    longest = 0
    submit = reactor.submit

    def watch(request: Any) -> None:
        nonlocal longest
        longest = max(longest, request.bytes)
        submit(request)

    reactor.submit = watch
    with Client(64, reactor=reactor, sub_job_sectors=16) as client:
        for sector in range(0, SECTORS, 8):
            client.copy(IoRegion(source, sector, 8), [IoRegion(dest, sector, 8)])
    assert longest == 16 << 9
    assert client.statistics().merged == 8


def test_a_pool_does_not_grow_by_what_is_served_from_several_runs() -> None:
    """Its list of free runs is looked through at each request: it must not keep empty ones."""
    pool = PagePool(8)
    for _ in range(50):
        pages = sorted(pool.take(4096) or () for _ in range(8))
        for page in pages[::2]:
            pool.give(page)
        taken = pool.take(3 * 4096) or ()
        assert len(taken) == 3
        pool.give(taken)
        for page in pages[1::2]:
            pool.give(page)
        assert pool.take(8 * 4096) == ((0, 8 * 4096),), "all of it, put together"
        pool.give(((0, 8 * 4096),))
        runs = [run for same in pool._runs.values() for run in same]
        assert sum(length for ((_, length),) in runs) == 8 * 4096
        assert all(length for ((_, length),) in runs)
    pool.close()


def test_a_clients_memory_is_pinned_for_as_long_as_it_lives(reactor: Reactor) -> None:
    """A ring keeps a hold on it, and the pages would not go back to the system."""
    calls: list[tuple[str, Any]] = []
    reactor.pin = lambda memory: calls.append(("pin", memory))  # type: ignore[method-assign]
    reactor.unpin = lambda memory: calls.append(("unpin", memory))  # type: ignore[method-assign]
    client = Client(8, reactor=reactor)
    memory = client.pool.memory
    assert calls == [("pin", memory)]
    client.destroy()
    client.destroy()
    assert calls == [("pin", memory), ("unpin", memory)]
