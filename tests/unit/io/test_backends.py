"""The real back ends on a regular file: every operation, and everything unusual."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dmcopy.block import BlockDevice
from dmcopy.errors import MissingError, UsageError
from dmcopy.io import CopyIo, Io, IoRegion, Memory, Op, Reactor, Timer, probe, uring
from dmcopy.io import threads as threads_module
from dmcopy.io.poller import Poller
from dmcopy.io.request import Request
from dmcopy.io.ring import Ring
from dmcopy.io.thread import ReactorThread
from dmcopy.io.uring import BURST
from dmcopy.kcopyd import Client, Move

SECTORS = 2048
needs_ring = pytest.mark.skipif(bool(probe()["uring"]), reason=probe()["uring"])


@pytest.fixture(params=["uring", "uring-refused", "threads", "uring-inline", "threads-inline"])
def reactor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reactor]:
    name, _, kind = request.param.partition("-")
    if probe()[name]:
        pytest.skip(f"{name}: {probe()[name]}")
    if kind == "refused":  # the system pins no memory for us
        monkeypatch.setattr(Ring, "register_buffer", lambda *_: False)
    with Reactor(name, inline=kind == "inline") as reactor:
        yield reactor


@pytest.fixture
def device(tmp_path: Path) -> Iterator[BlockDevice]:
    path = tmp_path / "device"
    path.write_bytes(random.Random(1).randbytes(SECTORS << 9))
    with BlockDevice.open(path, write=True) as device:
        yield device


@pytest.fixture
def memory(reactor: Reactor) -> Iterator[Memory]:
    memory = Memory(64)
    reactor.pin(memory)
    yield memory
    reactor.unpin(memory)
    memory.close()


def do(reactor: Reactor, *requests: Any) -> None:
    """Submit, and wait for all of them."""
    left = len(requests)

    def done(_: Any) -> None:
        nonlocal left
        left -= 1

    for request in requests:
        request.notify = done
        reactor.submit(request)
    reactor.run_until(lambda: not left, 20, "I/O")


def content(device: BlockDevice) -> bytes:
    return device.pread(0, device.sectors)


def test_each_request_is_done_once(reactor: Reactor, device: BlockDevice, memory: Memory) -> None:
    """One after the other, as where each is done inline: what is over must not be done again."""
    ended: list[Any] = []
    requests = [
        Io(Op.READ, IoRegion(device, 0, 8), memory, [(0, 4096)], ended.append) for _ in range(3)
    ]
    for number, request in enumerate(requests, 1):
        reactor.submit(request)
        reactor.run_until(lambda number=number: len(ended) >= number, 20, "I/O")  # type: ignore[misc]
    reactor.step(0)
    assert ended == requests


def test_read_and_write(reactor: Reactor, device: BlockDevice, memory: Memory) -> None:
    before = content(device)
    do(reactor, Io(Op.READ, IoRegion(device, 8, 16), memory, ((0, 8192),)))
    assert memory.read(((0, 8192),)) == before[4096 : 4096 + 8192]
    do(reactor, Io(Op.WRITE, IoRegion(device, 100, 16), memory, ((0, 8192),), fua=True))
    do(reactor, Io(Op.FLUSH, IoRegion(device, 0, 0)))
    assert content(device) == before[:51200] + before[4096:12288] + before[51200 + 8192 :]


class Sink:
    """A device that takes every write, and no flush: /dev/null."""

    path = "/dev/null"
    sectors = SECTORS
    logical_block_size = 512
    read_only = False
    write_through = False
    identity = "sink"

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def flush(self) -> None:
        os.fdatasync(self._fd)


def test_a_slow_device_does_not_stop_the_reactor(
    device: BlockDevice, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads do the system calls, several together, and none is started for nothing."""
    waiting, together, by = threading.Semaphore(0), threading.Barrier(2), set[int]()

    def slow(request: Request) -> None:
        by.add(threading.get_ident())
        if request.op == Op.READ:
            together.wait(60)
            assert waiting.acquire(timeout=60)
        perform(request)

    perform = threads_module.perform
    monkeypatch.setattr(threads_module, "perform", slow)
    with Reactor("threads") as reactor:
        pool = reactor.backend._pool  # type: ignore[attr-defined]
        for _ in range(3):
            do(reactor, Io(Op.FLUSH, IoRegion(device, 0, 0)))
        assert len(pool._threads) == 1
        timers: list[int] = []
        for _ in "12":
            reactor.call_later(0.01, lambda: timers.append(len(timers)))
            reactor.submit(Io(Op.READ, IoRegion(device, 0, 8), memory, ((0, 4096),), timers.append))
        reactor.run_until(lambda: len(timers) == 2, 20, "timers, while two reads take long")
        assert timers == [0, 1]
        waiting.release(2)
        reactor.run_until(lambda: len(timers) == 4, 20, "the reads")
        assert reactor.thread not in by
        assert len(pool._threads) == 2


@pytest.mark.parametrize("extents", [((0, 8192),), ((0, 4096), (8192, 4096))])
def test_a_write_behind_a_flush(
    reactor: Reactor, device: BlockDevice, memory: Memory, extents: Any
) -> None:
    data = os.urandom(8192)
    memory.fill(extents, data)
    region = IoRegion(device, 100, 16)
    writes = [
        Io(Op.WRITE, region, memory, extents, preflush=True, fua=fua) for fua in (True, False)
    ]
    for write in writes:
        do(reactor, write)
    assert [write.error for write in writes] == [0, 0]
    assert content(device)[100 << 9 : 116 << 9] == data


def test_a_write_whose_flush_fails_is_not_done(reactor: Reactor, memory: Memory) -> None:
    fd = os.open("/dev/null", os.O_WRONLY)
    region, extents = IoRegion(Sink(fd), 0, 8), ((0, 4096),)  # type: ignore[arg-type]
    plain = Io(Op.WRITE, region, memory, extents)
    behind = Io(Op.WRITE, region, memory, extents, preflush=True)
    do(reactor, plain, behind)
    do(reactor, plain)  # its slot is free again, and nothing is left over of the one before
    os.close(fd)
    assert (plain.error, behind.error) == (0, errno.EINVAL)


def test_a_device_without_a_write_cache_is_not_flushed(reactor: Reactor, memory: Memory) -> None:
    """As long as it has none: it is asked each time."""
    fd = os.open("/dev/null", os.O_WRONLY)
    sink = Sink(fd)
    errors = []
    for cached in (False, True, False, True):
        sink.write_through = not cached
        region = IoRegion(sink, 0, 8)  # type: ignore[arg-type]
        write = Io(Op.WRITE, region, memory, ((0, 4096),), preflush=True)
        do(reactor, write)
        errors.append(write.error)
    os.close(fd)
    assert errors == [0, errno.EINVAL, 0, errno.EINVAL]


def test_several_extents(reactor: Reactor, device: BlockDevice, memory: Memory) -> None:
    before = content(device)
    extents = ((8192, 4096), (0, 4096), (40960, 8192))
    do(reactor, Io(Op.READ, IoRegion(device, 64, 32), memory, extents))
    assert memory.read(extents) == before[32768 : 32768 + 16384]
    do(reactor, Io(Op.WRITE, IoRegion(device, 0, 32), memory, extents))
    assert content(device)[:16384] == before[32768 : 32768 + 16384]


def test_many_at_once(reactor: Reactor, device: BlockDevice, memory: Memory) -> None:
    """More than the ring has slots: the rest waits its turn."""
    before = content(device)
    reads = [
        Io(Op.READ, IoRegion(device, 8 * (n % 256), 8), memory, ((4096 * (n % 64), 4096),))
        for n in range(1000)
    ]
    do(reactor, *reads)
    assert not any(read.error for read in reads)
    assert before[-4096:] in before


def test_discard_and_zero(reactor: Reactor, device: BlockDevice) -> None:
    before = content(device)
    requests = [
        Io(Op.WRITE_ZEROES, IoRegion(device, 8, 8)),
        Io(Op.DISCARD, IoRegion(device, 800, 80)),
    ]
    do(reactor, *requests)
    assert [request.error for request in requests] == [0, 0]
    after = content(device)
    assert after[4096:8192] == bytes(4096)
    assert after[:4096] == before[:4096]
    assert after[8192 : 800 << 9] == before[8192 : 800 << 9]
    assert after[880 << 9 :] == before[880 << 9 :]


@pytest.mark.parametrize("extents", [((0, 8192),), ((0, 4096), (8192, 4096))])
@pytest.mark.parametrize("fan", [1, 3])
def test_copy(
    reactor: Reactor, device: BlockDevice, memory: Memory, extents: Any, fan: int
) -> None:
    before = content(device)
    dests = [IoRegion(device, 1000 + 100 * n, 16) for n in range(fan)]
    copy = CopyIo(IoRegion(device, 0, 16), dests, memory, extents, print)
    do(reactor, copy)
    assert (copy.error, copy.write_errors) == (0, {})
    after = content(device)
    for dest in dests:
        assert after[dest.sector << 9 : dest.end << 9] == before[:8192]


def test_errors_are_per_region(reactor: Reactor, device: BlockDevice, memory: Memory) -> None:
    """A destination that cannot be written fails; its neighbour in the same copy does not."""
    with BlockDevice.open(device.path, claim=False) as read_only:
        region, extents = IoRegion(device, 0, 16), ((0, 8192),)
        dests = [IoRegion(device, 100, 16), IoRegion(read_only, 200, 16)]
        good_and_bad = CopyIo(region, dests, memory, extents, print)
        alone = CopyIo(region, dests[1:], memory, extents, print)
        write = Io(Op.WRITE, dests[1], memory, extents)
        do(reactor, good_and_bad, alone, write)
    assert good_and_bad.write_errors == {1: errno.EBADF}
    assert alone.write_errors == {0: errno.EBADF}
    assert write.error == errno.EBADF
    assert content(device)[51200:59392] == content(device)[:8192]


def test_a_failed_read_writes_nothing(
    reactor: Reactor, device: BlockDevice, memory: Memory
) -> None:
    """The device ends before the region does: a short read, which must not become a short write."""
    before = content(device)
    os.truncate(device.path, 4096)
    source = IoRegion(device, 0, 16)
    copies = [
        CopyIo(source, [IoRegion(device, 64, 16)], memory, ((0, 8192),), print),
        CopyIo(source, [IoRegion(device, 64, 16)] * 2, memory, ((0, 8192),), print),
    ]
    read = Io(Op.READ, source, memory, ((16384, 8192),))
    do(reactor, read, *copies)
    assert read.error in (errno.EIO, errno.EINVAL)
    assert all(copy.error in (errno.EIO, errno.EINVAL) for copy in copies)
    assert not any(copy.write_errors for copy in copies)
    assert Path(device.path).read_bytes() == before[:4096]


def test_an_error_is_booked_on_who_made_it(
    reactor: Reactor, device: BlockDevice, memory: Memory
) -> None:
    """A read and a write that are linked: who reads a write error drops a good destination."""

    class Handle:
        """The device, open in one direction only."""

        path, sectors = device.path, device.sectors

        def __init__(self, flags: int) -> None:
            self.fileno = partial(int, os.open(device.path, flags))

    unreadable, unwritable = Handle(os.O_WRONLY), Handle(os.O_RDONLY)
    source, place = IoRegion(device, 0, 8), IoRegion(device, 64, 8)
    before = content(device)
    for extents in (((0, 4096),), ((0, 512), (4096, 3584))):
        for dests in ([place], [place, place]):
            bad_source = CopyIo(IoRegion(unreadable, 0, 8), dests, memory, extents, print)  # type: ignore[arg-type]
            do(reactor, bad_source)
            assert (bad_source.error, bad_source.write_errors) == (errno.EBADF, {})
        bad_dest = IoRegion(unwritable, 64, 8)  # type: ignore[arg-type]
        alone = CopyIo(source, [bad_dest], memory, extents, print)
        second = CopyIo(source, [source, bad_dest], memory, extents, print)
        do(reactor, alone)
        do(reactor, second)
        assert (alone.error, alone.write_errors) == (0, {0: errno.EBADF})
        assert (second.error, second.write_errors) == (0, {1: errno.EBADF})
    assert content(device) == before
    for handle in (unreadable, unwritable):
        os.close(handle.fileno())


def test_a_closed_device_is_an_error_not_an_exception(reactor: Reactor, memory: Memory) -> None:
    closed = BlockDevice.open(__file__, direct=False)
    region = IoRegion(closed, 0, 1)
    closed.close()
    requests: list[Request] = [
        Io(Op.READ, region, memory, ((0, 512),)),
        Io(Op.FLUSH, region),
        CopyIo(region, [region], memory, ((0, 512),), print),
        CopyIo(region, [region] * 2, memory, ((0, 512),), print),
        Io(Op.WRITE_ZEROES, region),
    ]
    do(reactor, *requests)
    assert [request.error for request in requests] == [errno.EBADF] * 5


def test_short_transfers_are_finished(
    device: BlockDevice, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that takes 512 bytes a call still moves all of them, into the right places."""
    before = content(device)
    preadv, pwritev = os.preadv, os.pwritev

    def shorter(views: list[memoryview]) -> list[memoryview]:
        return [views[0][:512]]

    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, shorter(views), at))
    monkeypatch.setattr(
        os,
        "pwritev",
        lambda fd, views, at, flags: pwritev(fd, shorter(views), at, flags),
    )
    extents = ((4096, 1024), (0, 4096), (8192, 3072))
    copy = CopyIo(IoRegion(device, 0, 16), [IoRegion(device, 512, 16)], memory, extents, print)
    threads_module.perform(copy)
    with Client(16, reactor=Reactor("threads")) as client:
        moves = [Move(device, 8 * place, 1000 + 24 * place, 8) for place in (3, 1, 0)]
        assert client.copy_list(moves, device, unit=8).wait(20).ok
        client.reactor.close()
    monkeypatch.undo()
    assert (copy.error, copy.write_errors) == (0, {})
    after = content(device)
    assert after[512 << 9 : 528 << 9] == before[:8192]
    for _, sector, dest, count in moves:
        assert after[dest << 9 :][: count << 9] == before[sector << 9 :][: count << 9]


def test_writes_have_no_flag_but_that_of_fua(
    device: BlockDevice, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flag that was not asked for costs time, and a file system may refuse it."""
    seen: list[int] = []

    def noting(fd: int, views: list[memoryview], at: int, flags: int) -> int:
        seen.append(flags)
        return pwritev(fd, views, at, flags)

    pwritev = os.pwritev
    monkeypatch.setattr(os, "pwritev", noting)
    here, there, extents = IoRegion(device, 0, 8), IoRegion(device, 512, 8), ((0, 4096),)
    copy = CopyIo(here, [there], memory, extents, print)
    writes = [Io(Op.WRITE, there, memory, extents, fua=fua) for fua in (False, True)]
    requests: list[Request] = [copy, *writes]
    for request in requests:
        threads_module.perform(request)
    monkeypatch.undo()
    assert (copy.write_errors, [write.error for write in writes]) == ({}, [0, 0])
    assert seen == [0, 0, os.RWF_DSYNC]


def test_signals_do_not_disturb(reactor: Reactor, device: BlockDevice, memory: Memory) -> None:
    """EINTR: a timer signal every millisecond while copies run."""
    before = content(device)
    heard: list[int] = []

    def hear(number: int, _: Any) -> None:
        reactor.call_soon_threadsafe(lambda: heard.append(number))

    old = signal.signal(signal.SIGALRM, hear)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for _ in range(50):
            place = IoRegion(device, 1024, 512)
            do(reactor, CopyIo(IoRegion(device, 0, 512), [place], memory, ((0, 1 << 18),), print))
            reactor.run_until(lambda: heard, 20, "a signal")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert content(device)[1024 << 9 : 1536 << 9] == before[: 512 << 9]


def test_timers_come_in_order(reactor: Reactor) -> None:
    said: list[str] = []
    timers: list[Timer] = [
        reactor.call_later(0.02, lambda: said.append("second")),
        reactor.call_later(0.01, lambda: said.append("first")),
        reactor.call_later(0.015, lambda: said.append("never")),
    ]
    timers[2].cancel()
    reactor.run_until(lambda: len(said) == 2, 20, "two timers")
    assert said == ["first", "second"]


def test_descriptors_are_watched(reactor: Reactor) -> None:
    reader, writer = os.pipe()
    said: list[bytes] = []
    reactor.watch(reader, lambda _: said.append(os.read(reader, 10)))
    threading.Timer(0.01, os.write, (writer, b"hello")).start()
    reactor.run_until(lambda: said, 20, "the pipe")
    reactor.unwatch(reader)
    os.write(writer, b"again")
    reactor.step(0.01)
    assert said == [b"hello"]
    os.close(reader)
    os.close(writer)


def test_it_sleeps_while_there_is_nothing_to_do(
    reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reactor that waits for a slow device takes no processor from those who work."""
    waits: list[float | None] = []
    wait, enter = Poller.wait, Ring.enter

    def waiting(poller: Poller, timeout: float | None) -> None:
        waits.append(timeout)
        wait(poller, timeout)

    def entering(ring: Ring, submit: int, wait: int, timeout: float | None = None) -> int:
        waits.append(timeout if wait else 0)
        return enter(ring, submit, wait, timeout)

    monkeypatch.setattr(Poller, "wait", waiting)
    monkeypatch.setattr(Ring, "enter", entering)
    timers: list[int] = []
    reactor.call_later(0.05, lambda: timers.append(1))
    reactor.run_until(lambda: timers, 20, "a timer")
    assert any(timeout for timeout in waits if timeout is not None)


@pytest.mark.parametrize("backend", ["uring", "threads"])
def test_what_is_alone_is_done_inline_and_two_are_not(
    backend: str, device: BlockDevice, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that were done one after the other would take the time of both."""
    if probe()[backend]:
        pytest.skip(probe()[backend])
    inline: list[bool] = []
    mine, perform = threading.get_ident(), threads_module.perform

    def noting(request: Request) -> None:
        inline.append(threading.get_ident() == mine)
        perform(request)

    for module in (threads_module, uring):
        monkeypatch.setattr(module, "perform", noting)
    with Reactor(backend, inline=True) as reactor:

        def read() -> Io:
            return Io(Op.READ, IoRegion(device, 0, 8), memory, ((0, 4096),))

        do(reactor, read())
        assert inline == [True]
        inline.clear()
        do(reactor, read(), read(), read())
        assert True not in inline
        do(reactor, read())
        assert inline[-1] is True


def test_other_threads_wake_it(reactor: Reactor) -> None:
    said: list[int] = []
    threading.Timer(0.01, reactor.call_soon_threadsafe, (lambda: said.append(1),)).start()
    reactor.run_until(lambda: said, 20, "the other thread")
    assert said == [1]


def test_a_wait_ends_at_its_deadline(reactor: Reactor) -> None:
    from dmcopy.errors import DeadlineError

    with pytest.raises(DeadlineError, match=r"waited 0.05 s for nothing that comes"):
        reactor.run_until(bool, 0.05, "nothing that comes")


@pytest.mark.timeout(60)
def test_one_that_cannot_be_made_in_the_background_says_why() -> None:
    with pytest.raises(UsageError, match="nonsense"), ReactorThread("nonsense"):
        pass


def test_in_the_background(device: BlockDevice) -> None:
    before = content(device)
    with ReactorThread() as thread:
        client = Client(16, reactor=thread.reactor)
        threads: list[str] = []
        job = client.copy(
            IoRegion(device, 0, 800),
            [IoRegion(device, 1000, 800)],
            notify=lambda *_: threads.append(threading.current_thread().name),
        )
        assert job.wait(20).ok
        client.destroy()
    assert threads == ["dmcopy-reactor"]
    assert content(device)[1000 << 9 : 1800 << 9] == before[: 800 << 9]


def test_await_on_real_io(device: BlockDevice) -> None:
    import asyncio

    async def copies() -> list[bool]:
        with Client(16) as client:
            jobs = [
                client.copy(IoRegion(device, 0, 256), [IoRegion(device, 256 * n, 256)])
                for n in range(1, 8)
            ]
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    ticks += 1
                    await asyncio.sleep(0)

            ticker = asyncio.ensure_future(tick())
            done = await asyncio.gather(*jobs)
            ticker.cancel()
            assert ticks, "the loop continued"
            return [job.ok for job in done]

    assert asyncio.run(asyncio.wait_for(copies(), 20)) == [True] * 7
    assert len({content(device)[n << 17 : n + 1 << 17] for n in range(8)}) == 1


def test_a_back_end_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMCOPY_IO", "threads")
    with Reactor() as reactor:
        assert reactor.backend.name == "threads"
    monkeypatch.setenv("DMCOPY_IO", "libaio")
    with pytest.raises(UsageError, match="no I/O back end 'libaio': choose one of uring, threads"):
        Reactor()


def test_a_back_end_that_does_not_work_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmcopy.io.backend.probe", lambda: {"uring": "forbidden", "threads": ""})
    monkeypatch.delenv("DMCOPY_IO", raising=False)
    with Reactor() as reactor:
        assert reactor.backend.name == "threads"
    with pytest.raises(MissingError, match="uring does not work here: forbidden"):
        Reactor("uring")


def test_the_clock_is_monotonic(reactor: Reactor) -> None:
    assert abs(reactor.time() - time.monotonic()) < 60


def mapped() -> int:
    """How many mappings of rings there are."""
    return Path("/proc/self/maps").read_text().count("[io_uring]")


def test_a_closed_ring_leaves_no_mapping_that_would_keep_it() -> None:
    """What the ring has not let go of stays open as long as it is there, devices too."""
    if probe()["uring"]:
        pytest.skip(f"no io_uring here: {probe()['uring']}")
    before = mapped()
    with Reactor("uring") as reactor:
        reactor.step()
        assert mapped() > before
    assert mapped() == before


def test_a_reactor_can_be_closed_by_another_thread(device: BlockDevice) -> None:
    """As by `Client.destroy` from outside: only the maker's thread may enter its ring."""
    if probe()["uring"]:
        pytest.skip(f"no io_uring here: {probe()['uring']}")
    before = mapped()
    reactor = Reactor("uring")
    do(reactor, Io(Op.FLUSH, IoRegion(device, 0, 0)))
    errors: list[BaseException] = []

    def close() -> None:
        try:
            reactor.close()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=close)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert errors == []
    assert mapped() == before


@needs_ring
def test_one_memory_is_pinned_at_a_time(
    device: BlockDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(device)
    pinned: list[bool] = []
    register = Ring.register_buffer

    def noting(ring: Ring, address: int, length: int) -> bool:
        pinned.append(register(ring, address, length))
        return pinned[-1]

    monkeypatch.setattr(Ring, "register_buffer", noting)
    with Reactor("uring") as reactor:
        for _ in range(2):  # the second time round the place is free again
            memories = [Memory(1), Memory(1), Memory(512)]  # the last has a huge page
            for memory in memories:
                reactor.pin(memory)
            for place, memory in enumerate(memories):
                source, dest = IoRegion(device, 8, 8), IoRegion(device, 160 + 8 * place, 8)
                do(reactor, CopyIo(source, [dest], memory, ((0, 4096),), lambda _: None))
                reactor.unpin(memory)
                memory.close()
    assert content(device)[81920:94208] == before[4096:8192] * 3
    assert pinned == [True, True] or not any(pinned)  # RLIMIT_MEMLOCK may forbid it


@needs_ring
def test_a_burst_is_begun_while_more_is_still_being_made(
    device: BlockDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    enter = Ring.enter

    def counting(ring: Ring, submit: int, wait: int, timeout: float | None = None) -> int:
        taken.append(submit)
        if len(taken) == 1:
            raise OSError(errno.EBADF, "a mistake of ours, which is for the next poll to tell")
        return enter(ring, submit, wait, timeout)

    memory = Memory(64)
    with Reactor("uring") as reactor:
        monkeypatch.setattr(Ring, "enter", counting)
        done: list[Io] = []
        regions = [IoRegion(device, 8 * place, 8) for place in range(3 * BURST)]
        for place, region in enumerate(regions):
            extents = ((place * 4096, 4096),)
            reactor.submit(Io(Op.READ, region, memory, extents, done.append))
        assert taken == [BURST, 2 * BURST, BURST]
        reactor.run_until(lambda: len(done) == 3 * BURST, 20, "reads")
    assert not any(request.error for request in done)
    assert memory.read([(0, 3 * BURST * 4096)]) == content(device)[: 3 * BURST * 4096]
    memory.close()


def test_a_device_that_takes_nothing_is_an_error_and_no_endless_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pwritev(2) may write less than it was given; of some devices' drivers, nothing at all."""
    calls = iter(range(3))

    def nothing(*_: object) -> int:
        next(calls)  # StopIteration ends what would never end
        return 0

    monkeypatch.setattr(os, "pwritev", nothing)
    monkeypatch.setattr(os, "preadv", nothing)
    for transfer in (threads_module.write_all, threads_module.read_all):
        with pytest.raises(OSError, match="the device") as caught:
            transfer(0, [memoryview(bytearray(512))], 0, 512)
        assert caught.value.errno == errno.EIO
