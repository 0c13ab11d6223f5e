"""The contract of kcopyd, rule by rule, on simulated disks."""

from __future__ import annotations

import asyncio
import errno
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dmcopy.errors import ClosedError, DeadlineError, UsageError
from dmcopy.io import Io, IoRegion, Op, Reactor
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.kcopyd import Client, Failure, Flag, Move, check


@pytest.fixture
def client(reactor: Reactor) -> Iterator[Client]:
    with Client(64, reactor=reactor) as client:
        yield client


def disk(name: str, sectors: int = 8192, seed: int | None = None, **kw: Any) -> SimulatedDisk:
    new = SimulatedDisk(sectors, name, **kw)
    if seed is not None:
        new.load(random.Random(seed).randbytes(sectors << 9))
    return new


def whole(device: SimulatedDisk) -> IoRegion:
    return IoRegion(device, 0, device.sectors)


def test_one_source_to_eight_destinations(client: Client) -> None:
    source = disk("source", seed=1)
    dests = [disk(f"dest{n}") for n in range(8)]
    job = client.copy(whole(source), [whole(dest) for dest in dests]).wait(10)
    assert job.ok
    assert job.progress() == (8192,) * 8
    assert all(dest.content == source.content for dest in dests)
    statistics = client.statistics()
    assert (statistics.jobs, statistics.jobs_done) == (0, 1)


def test_the_callback_says_what_the_kernel_says(client: Client) -> None:
    source, good, bad = disk("source", seed=1), disk("good"), disk("bad")
    bad.fail(Op.WRITE, 100, 1)
    said: list[tuple[int, int, Any]] = []
    dests = [IoRegion(good, 0, 8), IoRegion(bad, 96, 8)]
    context = object()
    job = client.copy(IoRegion(source, 0, 8), dests, 0, lambda *words: said.append(words), context)
    assert not said, "never inside copy()"
    job.wait(10)
    assert said == [(0, 0b10, context)]
    assert good.read(0, 8) == source.read(0, 8)
    assert job.write_failures == [(1, Failure(dests[1], errno.EIO))]
    assert list(job.written(0)) == [(0, 8)]
    assert not job.written(1)


def test_a_read_error_writes_nothing(client: Client) -> None:
    source, dest = disk("source", seed=1), disk("dest", seed=2)
    before = bytes(dest.content)
    source.fail(Op.READ, 5, 1)
    job = client.copy(IoRegion(source, 0, 8), [IoRegion(dest, 0, 8)]).wait(10)
    assert (job.read_err, job.write_err) == (1, 0)
    assert job.read_failures == [Failure(IoRegion(source, 0, 8), errno.EIO)]
    assert dest.content == before


def test_ignore_error_goes_on_and_writes_zeroes(client: Client) -> None:
    source, dest = disk("source", seed=1), disk("dest", seed=2)
    source.fail(Op.READ, 0, 1)
    job = client.copy(whole(source), [whole(dest)], Flag.IGNORE_ERROR).wait(10)
    assert (job.read_err, job.write_err) == (1, 0)
    lost = job.read_failures[0].region.count
    assert dest.read(0, lost) == bytes(lost << 9)
    assert dest.read(lost, 8192 - lost) == source.read(lost, 8192 - lost)


def test_after_an_error_no_new_slice_starts(client: Client) -> None:
    source, dest = disk("source", seed=1), disk("dest")
    source.fail(Op.READ, 0, 1)
    job = client.copy(whole(source), [whole(dest)]).wait(10)
    assert job.read_err
    # Eight slices were cut at the start, and each that succeeds before the error is known cuts one.
    assert job.written(0).total() < 8192


def test_write_seq_writes_in_ascending_order(client: Client, reactor: Reactor) -> None:
    source, dest = disk("source", seed=1), disk("dest")
    writes: list[int] = []
    submit = reactor.submit

    def watch(request: Any) -> None:
        if isinstance(request, Io) and request.op == Op.WRITE:
            writes.append(request.sector)
        submit(request)

    reactor.submit = watch
    job = client.copy(whole(source), [whole(dest)], Flag.WRITE_SEQ).wait(10)
    assert job.ok
    assert writes == sorted(writes)
    assert len(writes) == 8192 // client.sub_job_sectors
    assert dest.content == source.content


def test_sparse_zeroes_out_instead_of_writing(client: Client) -> None:
    source, dest = disk("source"), disk("dest", seed=2)
    source.write(64, b"data" * 1024)
    dest.fail(Op.WRITE, 0, 64)
    dest.fail(Op.WRITE, 72, 8192)
    job = client.copy(whole(source), [whole(dest)], Flag.SPARSE).wait(10)
    assert job.ok, "only the one block of data was written"
    assert dest.content == source.content


def test_zero(client: Client) -> None:
    dests = [disk("one", seed=1), disk("two", seed=2)]
    job = client.zero([IoRegion(dest, 8, 100) for dest in dests]).wait(10)
    assert job.ok
    for dest in dests:
        assert dest.read(8, 100) == bytes(100 << 9)
        assert any(dest.read(0, 8))
        assert any(dest.read(108, 1))


def test_an_empty_job_calls_back_too(client: Client) -> None:
    said: list[tuple[int, int, Any]] = []
    region = IoRegion(disk("source"), 8, 0)
    job = client.copy(region, [IoRegion(disk("dest"), 0, 0)], 0, lambda *w: said.append(w))
    assert not said
    job.wait(1)
    assert said == [(0, 0, None)]


def test_who_waits_for_pages_is_not_overtaken(reactor: Reactor) -> None:
    """A big job that waits for pages goes before small ones that came later and would fit."""
    source, dest = disk("source", seed=1), disk("dest")
    order: list[str] = []
    submit = reactor.submit

    def watch(request: Any) -> None:
        order.append("big" if request.bytes == 4 * 4096 else "small")
        submit(request)

    reactor.submit = watch
    with Client(4, reactor=reactor, sub_job_sectors=32) as client:
        client.copy(IoRegion(source, 0, 8), [IoRegion(dest, 0, 8)])
        client.copy(IoRegion(source, 1000, 32), [IoRegion(dest, 1000, 32)])
        for place in (100, 200, 300):
            client.copy(IoRegion(source, place, 8), [IoRegion(dest, place, 8)])
    assert order == ["small", "big", "small", "small", "small"]


def test_neighbours_go_out_together(client: Client) -> None:
    source, dest = disk("source", seed=1), disk("dest")
    places = [*range(0, 80, 8), 200]
    jobs = [client.copy(IoRegion(source, n, 8), [IoRegion(dest, 1000 + n, 8)]) for n in places]
    assert all(job.wait(10).ok for job in jobs)
    assert client.statistics().merged == 10
    assert dest.read(1000, 80) == source.read(0, 80)


def test_two_neighbours_are_enough(client: Client) -> None:
    source, dest = disk("source", seed=1), disk("dest")
    for n in (0, 8):
        client.copy(IoRegion(source, n, 8), [IoRegion(dest, n, 8)])
    client.destroy()
    assert client.statistics().merged == 2


def test_an_error_in_merged_copies_hits_only_its_own_job(client: Client) -> None:
    source, dest = disk("source", seed=1), disk("dest")
    source.fail(Op.READ, 20, 1)
    jobs = [
        client.copy(IoRegion(source, place, 8), [IoRegion(dest, place, 8)])
        for place in range(0, 40, 8)
    ]
    for job in jobs:
        job.wait(10)
    assert [job.read_err for job in jobs] == [0, 0, 1, 0, 0]
    assert dest.read(0, 16) == source.read(0, 16)
    assert dest.read(16, 8) == bytes(8 << 9)
    assert dest.read(24, 16) == source.read(24, 16)


def test_what_was_cancelled_is_not_done_again(client: Client) -> None:
    """Merged copies fail while their jobs are being cancelled: nothing more of them is written."""
    source, dest = disk("source", seed=1), disk("dest", seed=2)
    before = bytes(dest.content)
    dest.fail(Op.WRITE, 0, 8, times=1)
    jobs = [
        client.copy(IoRegion(source, place, 8), [IoRegion(dest, place, 8)])
        for place in range(0, 32, 8)
    ]
    client.reactor.step(0)
    for job in jobs:
        job.cancel()
    for job in jobs:
        job.wait(10)
    assert dest.content == before
    for job in jobs:  # what the merged request did write of it is not known
        assert job.write_failures == [(0, Failure(job.dests[0], errno.ECANCELED))]
        assert (job.read_err, job.write_err) == (0, 1)
    assert client.statistics().in_flight == 0


def test_cancel_leaves_a_defined_state(client: Client) -> None:
    source, dest = disk("source", 65536, seed=1), disk("dest", 65536, seed=2)
    before = bytes(dest.content)
    job = client.copy(whole(source), [whole(dest)])
    while job.progress() == (0,):
        client.reactor.step(1)
    assert job.cancel()
    assert not job.cancel()
    job.wait(10)
    assert job.cancelled
    assert not job.ok
    written = job.written(0)
    assert 0 < written.total() < 65536
    for start, end in written:
        assert dest.read(start, end - start) == source.read(start, end - start)
    for start, end in written.gaps(0, 65536):
        assert dest.content[start << 9 : end << 9] == before[start << 9 : end << 9]


def test_destroy_gives_back_the_pages_and_its_own_reactor_only(reactor: Reactor) -> None:
    """A program that makes many clients would run out of memory and of descriptors."""
    for given in (reactor, None):
        client = Client(8, reactor=given)
        client.destroy()
        with pytest.raises(ValueError, match="released"):
            bytes(client.pool.memory.view[:1])
        if given is None:
            with pytest.raises(ClosedError):
                client.reactor.call_soon_threadsafe(print)
        else:
            reactor.call_soon_threadsafe(lambda: None)


def test_a_copy_without_checks_is_a_job(client: Client) -> None:
    said: list[tuple[int, int, Any]] = []
    source, dest = disk("source", seed=1), disk("dest")
    places = IoRegion(source, 0, 8), [IoRegion(dest, 8, 8)]
    job = client.copy_chunk(*places, lambda *words: said.append(words), "context")
    assert job.wait(10).ok
    assert said == [(0, 0, "context")]
    assert dest.read(8, 8) == source.read(0, 8)


def test_destroy_waits_for_jobs_and_callbacks(reactor: Reactor) -> None:
    source, dest = disk("source", seed=1), disk("dest")
    said: list[int] = []
    client = Client(8, reactor=reactor)
    client.copy(whole(source), [whole(dest)], 0, lambda *_: said.append(1))
    prepared = client.prepare_callback(lambda *_: said.append(2))
    reactor.call_later(5, prepared.fire)
    client.destroy()
    assert said == [1, 2]
    assert reactor.time() >= 5
    for begin in (
        lambda: client.copy(whole(source), [whole(dest)]),
        lambda: client.copy_chunk(whole(source), [whole(dest)], lambda *_: None),
        lambda: client.copy_list([], dest, unit=8),
        lambda: client.zero([whole(dest)]),
    ):
        with pytest.raises(ClosedError):
            begin()
    assert client.statistics().jobs == 0
    client.destroy()


def test_a_prepared_callback_that_never_fires_is_named(reactor: Reactor) -> None:
    client = Client(8, reactor=reactor)
    prepared = client.prepare_callback(lambda *_: None)
    with pytest.raises(DeadlineError, match="any of the 1 jobs of a client"):
        client.destroy(timeout=1)
    prepared.fire()
    with pytest.raises(UsageError, match="only once"):
        prepared.fire()
    client.destroy()


def test_nothing_may_wait_inside_a_callback(reactor: Reactor) -> None:
    source, dest = disk("source"), disk("dest")
    raised: list[BaseException] = []
    reactor.on_exception = raised.append
    client = Client(8, reactor=reactor)
    client.copy(whole(source), [whole(dest)], 0, lambda *_: client.destroy()).wait(10)
    client.copy(whole(source), [whole(dest)], 0, lambda *_: reactor.run_until(bool)).wait(10)
    client.destroy()
    assert [type(error) for error in raised] == [UsageError, UsageError]


def test_a_callback_that_raises_ends_its_job(reactor: Reactor) -> None:
    raised: list[BaseException] = []
    reactor.on_exception = raised.append

    def notify(*_: Any) -> None:
        raise RuntimeError("mine")

    with Client(8, reactor=reactor) as client:
        job = client.copy(IoRegion(disk("a"), 0, 8), [IoRegion(disk("b"), 0, 8)], 0, notify).wait(9)
    assert job.ok
    assert str(raised[0]) == "mine"


def test_callbacks_start_new_copies(client: Client) -> None:
    """A chain of a thousand copies, each started by the callback of the one before."""
    source, dest = disk("source", seed=1), disk("dest")
    left = 1000

    def more(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left:
            place = left % 1000 * 8
            client.copy(IoRegion(source, place, 8), [IoRegion(dest, place, 8)], 0, more)

    more()
    client.reactor.run_until(lambda: not left, 100)
    assert dest.read(8, 7992) == source.read(8, 7992)


def test_a_device_that_vanishes(client: Client) -> None:
    source, dest = disk("source", seed=1), disk("dest")
    job = client.copy(whole(source), [whole(dest)])
    client.reactor.call_later(0.001, lambda: setattr(dest, "vanished", True))
    job.wait(10)
    assert job.write_err == 1
    assert job.write_failures[0][1].errno == errno.ENODEV


SMALL = disk("small", 100)
BIG = disk("big")
BLOCKS = disk("blocks", logical_block_size=4096)
READ_ONLY = disk("read-only")
READ_ONLY.read_only = True


@pytest.mark.parametrize(
    ("source", "dests", "sentence"),
    [
        (
            IoRegion(SMALL, 96, 8),
            [IoRegion(BIG, 0, 8)],
            "small sectors 96.8 ends at sector 104, past",
        ),
        (
            IoRegion(BIG, 0, 8),
            [IoRegion(SMALL, 96, 8)],
            "small sectors 96.8 ends at sector 104, past",
        ),
        (IoRegion(BIG, -8, 8), [IoRegion(SMALL, 0, 8)], "begins or ends before the device"),
        (IoRegion(BIG, 0, 8), [IoRegion(SMALL, 0, 16)], "not as long as"),
        (IoRegion(BIG, 0, 8), [IoRegion(BIG, 7, 8)], "overlaps the source"),
        (
            IoRegion(BIG, 0, 8),
            [IoRegion(SMALL, 0, 8), IoRegion(SMALL, 7, 8)],
            "another destination",
        ),
        (IoRegion(BIG, 0, 8), [IoRegion(SMALL, 0, 8), IoRegion(SMALL, 9, 7)], "not as long as"),
        (IoRegion(BIG, 0, 8), [], "1 to 8 destinations, not 0"),
        (IoRegion(BIG, 0, 8), [IoRegion(SMALL, 8 * n, 8) for n in range(9)], "not 9"),
        (IoRegion(BIG, 0, 8), [IoRegion(READ_ONLY, 0, 8)], "read-only"),
        (IoRegion(BIG, 0, 4), [IoRegion(BLOCKS, 0, 4)], "blocks of 4096 bytes"),
        (IoRegion(BLOCKS, 4, 8), [IoRegion(BIG, 0, 8)], "not on whole blocks of blocks"),
    ],
)
def test_bad_regions(
    client: Client, source: IoRegion, dests: list[IoRegion], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        client.copy(source, dests)
    assert client.statistics().jobs == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_pages": 0}, "at least one page"),
        ({"num_pages": 8, "depth": 0}, "depth of at least 1"),
        ({"num_pages": 8, "sub_job_sectors": 12}, "whole pages"),
        ({"num_pages": 8, "sub_job_sectors": 4096}, "8 to 2048 sectors"),
    ],
)
def test_bad_clients(reactor: Reactor, arguments: dict[str, int], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Client(reactor=reactor, **arguments)  # type: ignore[arg-type]


def test_a_pool_smaller_than_a_block(reactor: Reactor) -> None:
    big = disk("big-blocks", logical_block_size=65536)
    with (
        Client(8, reactor=reactor) as client,
        pytest.raises(UsageError, match=r"less than one block of big-blocks \(65536 bytes\)"),
    ):
        client.copy(whole(big), [whole(disk("dest"))])


def test_the_pool_is_the_only_memory(reactor: Reactor) -> None:
    source, dest = disk("source", seed=1), disk("dest")
    least = 64
    submit = reactor.submit
    client = Client(64, reactor=reactor)

    def watch(request: Any) -> None:
        nonlocal least
        least = min(least, client.statistics().pages_free)
        assert all(0 <= start < 64 * 4096 for start, _ in request.extents)
        submit(request)

    reactor.submit = watch
    with client:
        client.copy(whole(source), [whole(dest)])
    assert least == 0
    assert dest.content == source.content


def test_await() -> None:
    async def both() -> list[bytes]:
        source, dests = disk("source", seed=1), [disk("one"), disk("two")]
        with Client(8) as client:
            first = client.copy(IoRegion(source, 0, 0), [IoRegion(dests[0], 0, 0)])
            second = client.copy(IoRegion(source, 0, 0), [IoRegion(dests[1], 0, 0)])
            await asyncio.gather(first, second)
            assert first.ok
            assert second.ok
        return [bytes(dest.content) for dest in dests]

    asyncio.run(asyncio.wait_for(both(), 20))


def test_a_reactor_has_one_thread(client: Client) -> None:
    errors: list[BaseException] = []

    def elsewhere() -> None:
        try:
            client.reactor.run_until(lambda: True)
        except UsageError as error:
            errors.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join(10)
    assert "only by the thread that made it" in str(errors[0])


def test_what_another_thread_begins_is_begun_by_the_reactors(client: Client) -> None:
    """There are no locks: of two threads in the queue together, one may lose the other's job."""
    source, dest, zeroed = disk("source", seed=1), disk("dest"), disk("zeroed", seed=2)
    jobs: list[Any] = []

    def begin() -> None:
        jobs.append(client.copy(IoRegion(source, 0, 8), [IoRegion(dest, 0, 8)]))
        jobs.append(client.zero([whole(zeroed)]))
        jobs.append(client.copy_list([Move(source, 8, 8, 8)], dest, unit=8))

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join(60)
    assert (len(jobs), client.statistics().jobs, client.statistics().waiting) == (3, 0, 0)
    for job in jobs:
        assert job.wait(60).ok
    assert dest.read(0, 16) == source.read(0, 16)


def test_another_thread_waits_until_a_job_is_done(client: Client, reactor: Reactor) -> None:
    source, dest = disk("source", seed=1), disk("dest")
    job = client.copy(whole(source), [whole(dest)])
    found: list[object] = []

    def wait() -> None:
        try:
            found.append(job.wait(60).ok)
        except DeadlineError as error:
            found.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    job.wait(10)
    deadline = time.monotonic() + 60
    while not found:  # it may ask only now: what is done is told immediately
        assert time.monotonic() < deadline, "the other thread still waits"
        reactor.step()
    thread.join(60)
    assert found == [True]


def test_the_wait_of_another_thread_has_a_deadline(client: Client) -> None:
    job = client.copy(whole(disk("source")), [whole(disk("dest"))])
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            job.wait(0.01)  # nothing drives its reactor
        except DeadlineError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(60)
    assert str(errors[0]) == (
        "waited 0.01 s for the copy of source sectors 0+8192 to dest sectors 0+8192"
    )


def test_flags_are_the_kernels_bits() -> None:
    """DM_KCOPYD_IGNORE_ERROR and DM_KCOPYD_WRITE_SEQ are bits 1 and 2; ours is far from them."""
    assert [int(flag) for flag in Flag] == [2, 4, 1 << 16]


def test_a_zeroing_is_called_one(client: Client) -> None:
    dest = disk("dest")
    assert str(client.zero([whole(dest)])) == "zeroing of dest sectors 0+8192"
    assert str(client.copy(whole(disk("source")), [whole(dest)])).startswith("copy of source ")


@pytest.mark.parametrize("block", [512, 4096])
def test_a_good_copy_is_looked_at_only_once(
    client: Client, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """The way that says what is wrong with a copy takes several times as long."""
    monkeypatch.setattr(check, "_check_fan", lambda *_: pytest.fail("it was looked at again"))
    one, other = (disk(name, 64, logical_block_size=block) for name in ("one", "other"))
    for start, count in ((0, 64), (8, 16), (48, 16)):
        assert client.copy(IoRegion(one, start, count), [IoRegion(other, start, count)]).wait(9).ok
    assert client.copy(IoRegion(one, 0, 8), [IoRegion(one, 8, 8)]).wait(9).ok


def test_a_copy_of_nothing_takes_no_io_and_ends() -> None:
    """Of a target that was given a chunk of no length, too."""
    backend = SimulatedBackend(1)
    source, dest = SimulatedDisk(8, "source"), SimulatedDisk(8, "dest")
    source.fail(Op.READ, 0, 8)
    with Client(8, reactor=Reactor(backend)) as client:
        nothing = IoRegion(source, 0, 0), [IoRegion(dest, 0, 0)]
        jobs = [client.copy(*nothing), client.copy_chunk(*nothing, print)]
        assert all(job.wait(10).ok for job in jobs)
    assert backend.steps == 0
