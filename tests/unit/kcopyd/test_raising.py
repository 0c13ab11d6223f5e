"""What is raised on the way of a job ends that job, once, with an error, and no other."""

from __future__ import annotations

import asyncio
import errno
import gc
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dmcopy.errors import DeadlineError, UsageError
from dmcopy.io import IoRegion, Reactor
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.io.thread import ReactorThread
from dmcopy.kcopyd import Client, CopyJob, Flag, Throttle, subjob
from dmcopy.kcopyd.moves import Move

SECTORS = 1024


class Copies:
    """A client of small sub-jobs, and what its jobs' callbacks and its reactor were told."""

    def __init__(self, throttle: Throttle | None = None, backend: Any = None) -> None:
        self.reactor = Reactor(backend or SimulatedBackend(5))
        self.told: list[BaseException] = []
        self.reactor.on_exception = self.told.append
        self.client = Client(
            16, reactor=self.reactor, throttle=throttle, sub_job_sectors=16, depth=4
        )
        self.source = SimulatedDisk(SECTORS, "source")
        self.source.load(b"data" * 128 * SECTORS)
        self.called: list[tuple[int, int]] = []

    def start(self, count: int, flags: int = 0) -> CopyJob:
        dest = SimulatedDisk(SECTORS, "dest")
        region = IoRegion(self.source, 0, count)
        return self.client.copy(region, [IoRegion(dest, 0, count)], flags, self.notify)

    def notify(self, read_err: int, write_err: int, _: Any) -> None:
        self.called.append((read_err, write_err))

    def end(self) -> None:
        """Destroy the client: every job ends, and every page is back."""
        self.client.destroy(10)
        statistics = self.client.statistics()
        assert statistics.jobs == statistics.waiting == statistics.in_flight == 0
        assert statistics.pages_free == statistics.pages


def copied(job: CopyJob) -> bool:
    return job.dests[0].device.content[: job.bytes] == job.source.device.content[: job.bytes]  # type: ignore[attr-defined,no-any-return]


@pytest.fixture
def copies() -> Iterator[Copies]:
    copies = Copies()
    yield copies
    copies.end()


class BadThrottle(Throttle):
    """Raises once, in the method called `where`, at call number `at`."""

    def __init__(self, where: str, at: int) -> None:
        super().__init__(50)
        self._where = where
        self._left = at

    def must_wait(self, now: float, slept: int) -> bool:
        self._count("must_wait")
        return super().must_wait(now, slept)

    def account(self, now: float) -> None:
        self._count("account")
        super().account(now)

    def _count(self, where: str) -> None:
        if where == self._where:
            self._left -= 1
            if not self._left:
                raise ValueError("mine")


@pytest.mark.parametrize("where", ["must_wait", "account"])
@pytest.mark.parametrize("at", [1, 2, 3, 7])
@pytest.mark.parametrize("flags", [0, Flag.WRITE_SEQ, Flag.IGNORE_ERROR, Flag.SPARSE])
def test_a_throttle_that_raises(where: str, at: int, flags: int) -> None:
    throttle = BadThrottle(where, at)
    copies = Copies(throttle)
    jobs = [copies.start(count, flags) for count in (8, 200, 8, 8, SECTORS)]
    for job in jobs:
        job.wait(1000)
    copies.end()
    failed = [job for job in jobs if not job.ok]
    assert failed
    for job in failed:
        assert str(job.failure) == "mine"
        assert (job.read_err, job.write_err) == (1, 1)
        assert [failure.region for failure in job.read_failures] == [job.source]
    assert all(copied(job) for job in jobs if job.ok)
    assert len(copies.called) == len(jobs), "each is called back, once"
    assert len(copies.told) >= 1
    assert not throttle.in_flight


def test_neighbours_whose_throttle_raises() -> None:
    copies = Copies(BadThrottle("account", 2))
    dest = SimulatedDisk(SECTORS, "dest")
    jobs = [
        copies.client.copy(IoRegion(copies.source, n, 1), [IoRegion(dest, n, 1)]) for n in range(16)
    ]
    for job in jobs:
        job.wait(1000)
    copies.end()
    assert copies.client.statistics().merged == 16
    assert {str(job.failure) for job in jobs if not job.ok} == {"mine"}


@pytest.mark.parametrize("flags", [Flag.SPARSE, Flag.SPARSE | Flag.WRITE_SEQ])
def test_a_slice_that_cannot_be_written_out(
    copies: Copies, monkeypatch: pytest.MonkeyPatch, flags: int
) -> None:
    """As when there is no memory for looking at what was read."""
    runs, left = subjob.zero_runs, 3

    def zero_runs(data: bytes, block: int) -> Any:
        nonlocal left
        left -= 1
        if not left:
            raise MemoryError
        return runs(data, block)

    monkeypatch.setattr(subjob, "zero_runs", zero_runs)
    job = copies.start(SECTORS, flags).wait(1000)
    assert job.read_err
    assert copies.called == [(1, 0)]
    assert [type(error) for error in copies.told] == [MemoryError]
    assert copies.start(SECTORS, flags).wait(1000).ok


class Refusing(SimulatedBackend):
    """A user's own back end, whose `submit` raises for some requests."""

    left = 3

    def submit(self, request: Any) -> None:
        self.left -= 1
        if not self.left:
            raise ValueError("mine")
        super().submit(request)


@pytest.mark.parametrize("flags", [0, Flag.WRITE_SEQ, Flag.SPARSE])
@pytest.mark.parametrize("count", [8, SECTORS])
def test_a_back_end_that_raises(flags: int, count: int) -> None:
    copies = Copies(backend=Refusing(2))
    jobs = [copies.start(count, flags) for _ in range(3)]
    try:
        for job in jobs:
            job.wait(1000)
    finally:
        copies.end()
    assert len([job for job in jobs if not job.ok]) == 1
    assert len(copies.called) == 3
    assert [str(error) for error in copies.told] == ["mine"]


def test_a_back_end_that_raises_for_neighbours() -> None:
    """All of them end: they would be waited for, for ever."""
    reactor, disks = Reactor(SimulatedBackend(1)), [SimulatedDisk(64) for _ in range(2)]
    client = Client(8, reactor=reactor)

    def submit(_: Any) -> None:
        raise MemoryError

    reactor.submit = submit
    reactor.on_exception = lambda _: None
    regions = [[IoRegion(disk, n, 8) for disk in disks] for n in (0, 8)]
    jobs = [client.copy(source, [dest]) for source, dest in regions]
    client.destroy(10)
    assert [(job.done, job.ok) for job in jobs] == [(True, False)] * 2


def test_a_waiter_that_raises_starves_nobody(copies: Copies) -> None:
    job = copies.start(8)
    said: list[int] = []

    def bad() -> None:
        said.append(1)
        raise ValueError("mine")

    job.add_done_callback(bad)
    job.add_done_callback(lambda: said.append(2))
    job.wait(10)
    job.add_done_callback(bad)
    assert said == [1, 2, 1]
    assert [str(error) for error in copies.told] == ["mine"] * 2


def test_what_a_callback_raises_is_logged(copies: Copies, caplog: pytest.LogCaptureFixture) -> None:
    """Its job has ended: who waits for another need not hear of it."""
    copies.reactor.on_exception = None
    region = IoRegion(copies.source, 0, 8)

    def bad(*_: Any) -> None:
        raise ValueError("mine")

    job = copies.client.copy(region, [IoRegion(SimulatedDisk(8), 0, 8)], notify=bad)
    prepared = copies.client.prepare_callback(bad)
    prepared.fire()
    assert copies.start(8).wait(10).ok
    assert job.wait(10).ok
    copies.client.destroy(10)
    assert caplog.text.count("ValueError: mine") == 2


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_callback_comes_out_of_the_wait(
    copies: Copies, kind: type[BaseException]
) -> None:
    def bad(*_: Any) -> None:
        raise kind

    regions = [IoRegion(SimulatedDisk(8), 0, 8) for _ in range(2)]
    jobs = [copies.start(8) for _ in range(20)]
    jobs.append(copies.client.copy(regions[0], regions[1:], notify=bad))
    jobs += [copies.start(8) for _ in range(20)]
    with pytest.raises(kind):
        copies.client.destroy(10)
    copies.end()
    assert all(job.ok for job in jobs)


class InterruptedAt:
    """Ctrl-C comes at call or return number `at` of the library's own code, wherever that is.

    Not in the finalizer of what another test has left: Python drops what is raised in one.
    """

    def __init__(self, at: int) -> None:
        self._left = at

    def __enter__(self) -> None:
        self._handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        self._profile = sys.getprofile()
        gc.disable()
        sys.setprofile(self._tell)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._profile)
        gc.enable()
        signal.signal(signal.SIGINT, self._handler)

    def _tell(self, frame: Any, event: str, _: Any) -> None:
        if event in ("call", "c_return") and "/dmcopy/" in frame.f_code.co_filename:
            self._left -= 1
            if not self._left:
                signal.raise_signal(signal.SIGINT)


def live(at: int, jobs: list[Any]) -> bool:
    """Start copies of all kinds, and wait for them; return whether Ctrl-C came out of that."""
    copies = Copies()
    dest = SimulatedDisk(SECTORS, "dest")
    moves = [Move(copies.source, sector, sector, 8) for sector in (0, 16, 8)]
    try:
        with InterruptedAt(at):
            jobs.append(copies.start(8))
            jobs.append(copies.start(48, Flag.WRITE_SEQ))
            jobs.append(copies.client.copy_list(moves, dest, unit=8))
            jobs.append(copies.start(48))
            jobs[-1].cancel()
            for job in jobs:
                job.wait(10)
    except KeyboardInterrupt:
        interrupted = True
    else:
        interrupted = False
    copies.end()
    assert not copies.told
    return interrupted


def test_an_interrupt_anywhere_costs_no_job_its_end() -> None:
    """Python raises it after any call: in a state machine, that would be the end of all books."""
    for at in range(1, 10_000, 5):
        jobs: list[Any] = []
        interrupted = live(at, jobs)
        for job in jobs:
            assert job.done
            assert job.ok or job.cancelled
        if not interrupted:
            break
    assert 100 < at < 9_000, "until there was nothing more to interrupt"


def test_a_list_whose_iterator_is_interrupted(copies: Copies) -> None:
    dest = SimulatedDisk(SECTORS)

    def moves() -> Iterator[Move]:
        yield Move(copies.source, 0, 0, 8)
        raise KeyboardInterrupt

    job = copies.client.copy_list(moves(), dest, unit=8)
    with pytest.raises(KeyboardInterrupt):
        job.wait(10)
    assert job.wait(10).done
    assert not job.ok


def test_an_exception_that_ends_a_client_cancels_what_has_not_begun() -> None:
    """Ctrl-C does not wait for a terabyte."""
    reactor, disks = Reactor(SimulatedBackend(1)), [SimulatedDisk(8192) for _ in range(2)]
    said: list[int] = []
    client = Client(8, reactor=reactor)
    regions = [IoRegion(disk, 0, 8192) for disk in disks]
    big = client.copy(regions[0], regions[1:], notify=lambda *_: said.append(1))
    moves = (Move(disks[0], sector, sector, 8) for sector in range(0, 8192, 8))
    many = client.copy_list(moves, disks[1], unit=8, notify=lambda *_: said.append(2))
    client.prepare_callback(lambda *_: said.append(3))
    reactor.step(1)
    with pytest.raises(KeyboardInterrupt), client:
        raise KeyboardInterrupt
    for job in (big, many):
        assert job.done
        assert job.cancelled
    assert 0 <= big.written(0).total() < 8192
    assert sorted(said) == [1, 2]
    assert client.statistics().jobs == 0
    assert client.statistics().pages_free == 8


def test_what_is_all_in_flight_is_cancelled_too_when_a_client_is_given_up() -> None:
    """Nothing of it waits; without the rest that was never cut it must not look like a success."""
    reactor, disks = Reactor(SimulatedBackend(1)), [SimulatedDisk(65536) for _ in range(2)]
    client = Client(1024, reactor=reactor, sub_job_sectors=8)
    moves = (Move(disks[0], sector, sector, 8) for sector in range(0, 32768, 8))
    many = client.copy_list(moves, disks[1], unit=8)
    big = client.copy(IoRegion(disks[0], 32768, 32768), [IoRegion(disks[1], 32768, 32768)])
    reactor.step(0)
    assert client.statistics().waiting == 0
    assert client.statistics().in_flight == 16
    with pytest.raises(KeyboardInterrupt), client:
        raise KeyboardInterrupt
    for job in (many, big):
        assert (job.done, job.cancelled, job.ok) == (True, True, False)


def test_a_client_of_another_thread_is_given_up() -> None:
    """On the reactor's thread, which alone may touch the queues; then its memory is given back."""
    threads: list[int] = []
    with ReactorThread("threads") as thread:
        client = Client(8, reactor=thread.reactor)
        work, memory = client._work, client.pool.memory
        give_up = work.give_up

        def noting() -> None:
            threads.append(threading.get_ident())
            give_up()

        work.give_up = noting  # type: ignore[method-assign]
        prepared = client.prepare_callback(lambda *_: None)
        with pytest.raises(ValueError, match="mine"), client:
            raise ValueError("mine")
        assert client.statistics().jobs == 0
        assert threads == [thread.reactor.thread]
        with pytest.raises(ValueError, match="released memoryview"):
            memory.read([(0, 1)])
        with pytest.raises(UsageError, match="only once, while there is a client"):
            prepared.fire()


def test_the_exception_that_ended_the_block_is_kept() -> None:
    """Even where the client cannot be destroyed: not DeadlineError for KeyboardInterrupt."""
    reactor = Reactor(SimulatedBackend(1))
    client = Client(8, reactor=reactor)

    def destroy(_timeout: float = 0) -> None:
        raise DeadlineError("waited 300 s")

    client.destroy = destroy  # type: ignore[assignment,method-assign]
    with pytest.raises(KeyboardInterrupt) as caught, client:
        raise KeyboardInterrupt
    assert caught.value.__notes__ == ["Then its client could not be destroyed: waited 300 s."]


def test_a_job_whose_start_was_interrupted_is_begun_by_the_next_look(copies: Copies) -> None:
    """A signal may come between a job's place in the queue and the look at the queue."""
    work = copies.client._work
    want_pump, work._want_pump = work._want_pump, lambda: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        copies.start(8)
    work._want_pump = want_pump  # type: ignore[method-assign]
    copies.client.destroy(10)
    assert copies.called == [(0, 0)]


@pytest.mark.parametrize("backend", ["uring", "threads"])
def test_what_is_awaited_ends(backend: str, tmp_path: Any) -> None:
    """A wait that was cancelled, in a loop that is closed by now, costs no other its result."""
    from dmcopy.block import BlockDevice

    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    with Reactor(backend) as reactor, BlockDevice.open(path, write=True) as disk:
        client = Client(8, reactor=reactor)

        def start() -> CopyJob:
            return client.copy(IoRegion(disk, 0, 800), [IoRegion(disk, 1000, 800)])

        async def twice() -> CopyJob:
            await asyncio.wait_for(start(), 20)
            job = start()
            waiting = asyncio.ensure_future(asyncio.wait_for(job, 20))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            return job

        job = asyncio.run(twice())
        said: list[int] = []
        job.add_done_callback(lambda: said.append(1))
        job.wait(20)
        assert said
        asyncio.run(twice()).wait(20)

        async def raising() -> None:
            waiting = asyncio.ensure_future(asyncio.wait_for(start(), 20))
            reactor.call_later(0, lambda: [][0])
            await waiting

        with pytest.raises(IndexError):
            asyncio.run(raising())
        client.destroy(20)


def test_errnos_of_what_was_raised(copies: Copies) -> None:
    job = copies.start(8)
    job.break_off(ValueError("first"))
    job.break_off(ValueError("second"))
    assert str(job.failure) == "first"
    assert job.read_failures[0].errno == job.write_failures[0][1].errno == errno.EIO
    assert not job.may_go_on
    job.wait(10)
    assert not job.ok
