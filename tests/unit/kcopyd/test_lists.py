"""Lists: many regions to many in one job, whatever the pages, the errors and the back end are."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.block import BlockDevice
from dmcopy.errors import ClosedError, UsageError
from dmcopy.io import Device, Io, IoRegion, Op, Reactor
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.io.stacked import StackedDevice
from dmcopy.kcopyd import Client, Failure, ListJob, Move, Throttle
from dmcopy.units import PAGE_SIZE

UNIT = 8
SECTORS = 4096


@pytest.fixture
def client(reactor: Reactor) -> Iterator[Client]:
    with Client(64, reactor=reactor) as client:
        yield client
        assert client.pool.free == client.pool.total


def disk(name: str, sectors: int = SECTORS) -> SimulatedDisk:
    made = SimulatedDisk(sectors, name)
    made.load(random.Random(name).randbytes(sectors << 9))
    return made


def moves_of(seed: int, sources: list[Device], units: int = SECTORS // UNIT) -> list[Move]:
    """Return moves that fill a device of that many units, in no order, from anywhere."""
    rnd = random.Random(seed)
    moves, at = [], 0
    while at < units:
        count = min(rnd.choice((1, 1, 1, 2, 5, 40)), units - at)
        source, begin = rnd.choice(sources), rnd.randrange(units - count + 1)
        moves.append(Move(source, begin * UNIT, at * UNIT, count * UNIT))
        at += count
    rnd.shuffle(moves)
    return moves


def expected(moves: list[Move], out: bytes | bytearray) -> bytes:
    content = bytearray(out)
    for source, sector, dest, count in moves:
        assert isinstance(source, SimulatedDisk)
        content[dest << 9 : (dest + count) << 9] = source.read(sector, count)
    return bytes(content)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("pages", [2, 3, 17, 64, 2048])
def test_every_byte_arrives(reactor: Reactor, pages: int, seed: int) -> None:
    out, moves = disk("out"), moves_of(seed, [disk("cow"), disk("origin")])
    wanted = expected(moves, out.content)
    with Client(pages, reactor=reactor, throttle=Throttle(50)) as client:
        job = client.copy_list(iter(moves), out, unit=UNIT).wait(60)
        assert client.pool.free == pages
        statistics = client.statistics()
    assert job.ok
    assert out.content == wanted
    assert (job.sectors, statistics.sectors_read, statistics.sectors_written) == (SECTORS,) * 3


@pytest.mark.parametrize("seed", range(5))
def test_in_a_pool_that_fell_to_pieces(reactor: Reactor, seed: int) -> None:
    out, moves = disk("out"), moves_of(seed, [disk("cow"), disk("origin")])
    wanted = expected(moves, out.content)
    with Client(64, reactor=reactor, sub_job_sectors=64) as client:
        held = [client.pool.take(PAGE_SIZE) for _ in range(64)]
        for pages in held[::2]:
            assert pages is not None
            client.pool.give(pages)
        assert client.copy_list(moves, out, unit=UNIT).wait(60).ok
        for pages in held[1::2]:
            assert pages is not None
            client.pool.give(pages)
    assert out.content == wanted


def test_small_copies_and_a_list_share_a_client(client: Client) -> None:
    out, other, cow = disk("out"), disk("other"), disk("cow")
    moves = moves_of(1, [cow])
    wanted = expected(moves, out.content)
    job = client.copy_list(moves, out, unit=UNIT)
    copies = [
        client.copy(IoRegion(cow, at, 8), [IoRegion(other, at, 8)]) for at in range(0, 800, 8)
    ]
    assert job.wait(60).ok
    assert all(copy.wait(60).ok for copy in copies)
    assert out.content == wanted
    assert other.read(0, 800) == cow.read(0, 800)


def test_the_callback_comes_when_all_is_done(client: Client) -> None:
    said: list[tuple[int, int, object]] = []
    job = client.copy_list([], disk("out"), unit=1, notify=lambda *w: said.append(w), context="c")
    assert not said, "never inside copy_list()"
    assert job.wait(60).ok
    assert said == [(0, 0, "c")]


def test_what_cannot_be_read_is_told_unit_by_unit(client: Client) -> None:
    out, cow = disk("out"), disk("cow")
    before = out.read(0, 64)
    cow.fail(Op.READ, 17, 1)
    cow.fail(Op.READ, 1040, 1)
    job = client.copy_list([Move(cow, 0, 32, 32), Move(cow, 1024, 0, 32)], out, unit=UNIT).wait(60)
    assert (job.ok, job.read_err, job.write_err) == (False, 1, 0)
    failed = [(Move(cow, 16, 48, 8), errno.EIO), (Move(cow, 1040, 16, 8), errno.EIO)]
    assert sorted(job.unread, key=lambda one: one[0].sector) == failed
    assert job.sectors == 64 - 16
    for source, dest in ((1024, 0), (1032, 8), (1048, 24), (0, 32), (8, 40), (24, 56)):
        assert out.read(dest, 8) == cow.read(source, 8)
    for dest in (16, 48):
        assert out.read(dest, 8) == before[dest << 9 : (dest + 8) << 9]


def test_after_an_error_no_new_window_begins(client: Client) -> None:
    out, cow = disk("out"), disk("cow")
    out.fail(Op.WRITE, 0, 8)
    taken = [0]

    def moves() -> Iterator[Move]:
        for at in range(0, SECTORS, UNIT):
            taken[0] += 1
            yield Move(cow, at, at, UNIT)

    job = client.copy_list(moves(), out, unit=UNIT).wait(60)
    assert (job.read_err, job.write_err) == (0, 1)
    assert job.write_failures == [(0, Failure(IoRegion(out, 0, job.limit), errno.EIO))]
    assert job.sectors < taken[0] * UNIT < SECTORS


def test_moves_that_cannot_be_had(client: Client) -> None:
    out, cow = disk("out"), disk("cow")

    def moves() -> Iterator[Move]:
        yield Move(cow, 0, 8, 600)
        raise LookupError("no more")

    job = client.copy_list(moves(), out, unit=UNIT).wait(60)
    assert isinstance(job.failure, LookupError)
    assert not job.ok
    assert out.read(8, job.sectors) == cow.read(0, job.sectors)


def test_nothing_is_written_past_the_end(client: Client) -> None:
    out = disk("out", 64)
    job = client.copy_list([Move(disk("cow"), 0, 60, 8)], out, unit=UNIT).wait(60)
    assert isinstance(job.failure, UsageError)
    assert not out.writes


def test_cancel(client: Client, reactor: Reactor) -> None:
    out, cow = disk("out"), disk("cow")
    job = client.copy_list([Move(cow, 0, 0, SECTORS)], out, unit=UNIT)
    reactor.run_until(lambda: job.sectors, 60, "the first window")
    assert job.cancel()
    assert not job.cancel()
    job.wait(60)
    assert not job.ok
    assert UNIT <= job.sectors < SECTORS
    writes = out.writes
    for _ in range(20):
        reactor.step(1)
    assert out.writes == writes


def test_clients_that_cannot(reactor: Reactor) -> None:
    with Client(1, reactor=reactor) as client:
        with pytest.raises(UsageError, match="give it more pages"):
            client.copy_list([], disk("out"), unit=1)
        out = SimulatedDisk(64, "out", logical_block_size=8192)
        with pytest.raises(UsageError, match="8192 bytes: give it more pages"):
            client.copy_list([], out, unit=16)
    with pytest.raises(ClosedError):
        client.copy_list([], disk("out"), unit=1)


class Shifted(StackedDevice):
    """A disk, seen from sector 8 on."""

    def __init__(self, under: SimulatedDisk, reactor: Reactor) -> None:
        self.path, self.sectors, self.read_only = "shifted", under.sectors - 8, False
        self.logical_block_size, self.identity = 512, id(self)
        self._under, self._reactor = under, reactor

    def submit(self, request: Io) -> None:
        def ended(below: Io) -> None:
            request.error = below.error
            request.notify(request)  # type: ignore[misc]

        region = IoRegion(self._under, request.sector + 8, request.count)
        self._reactor.submit(Io(request.op, region, request.memory, request.extents, ended))


def test_stacked_devices() -> None:
    reactor = Reactor(SimulatedBackend(1), stacked=True)
    cow, out = disk("cow"), disk("out")
    source, dest = Shifted(cow, reactor), Shifted(out, reactor)
    with Client(64, reactor=reactor) as client:
        moves = [Move(source, 0, 16, 16), Move(cow, 80, 0, 8)]  # type: ignore[arg-type]
        job = client.copy_list(moves, dest, unit=UNIT).wait(60)  # type: ignore[arg-type]
    assert job.ok
    assert out.read(24, 16) == cow.read(8, 16)
    assert out.read(8, 8) == cow.read(80, 8)


@pytest.mark.parametrize("backend", ["uring", "threads"])
@pytest.mark.parametrize("pages", [16, 4096])
def test_on_files(backend: str, pages: int, tmp_path: Path) -> None:
    models = [disk("cow"), disk("origin"), disk("out")]
    with contextlib.ExitStack() as stack:
        files: dict[int, Device] = {}
        for model in models:
            path = tmp_path / model.path
            path.write_bytes(model.content)
            files[id(model)] = stack.enter_context(BlockDevice.open(path, write=True))
        client = stack.enter_context(Client(pages, reactor=stack.enter_context(Reactor(backend))))
        moves = moves_of(5, [*models[:2]])
        real = [move._replace(source=files[id(move.source)]) for move in moves]
        assert client.copy_list(real, files[id(models[2])], unit=UNIT).wait(60).ok
        truncated = files[id(models[0])]
        os.truncate(tmp_path / "cow", 512 << 9)
        job = client.copy_list([Move(truncated, 504, 0, 16)], files[id(models[2])], unit=UNIT)
        assert job.wait(60).unread == [(Move(truncated, 512, 8, 8), errno.EIO)]
    wanted = bytearray(expected(moves, models[2].content))
    wanted[: 8 << 9] = models[0].read(504, 8)
    assert (tmp_path / "out").read_bytes() == wanted


def test_from_another_thread(client: Client) -> None:
    out, cow = disk("out"), disk("cow")
    jobs: list[ListJob] = []

    def start() -> None:
        jobs.append(client.copy_list([Move(cow, 0, 0, SECTORS)], out, unit=UNIT))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join(60)
    assert jobs[0].wait(60).ok
    assert out.content == cow.content
