"""The fault wrapper fails what it is told to, as often as it is told, and nothing else."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.block import BlockDevice
from dmcopy.io import CopyIo, Io, IoRegion, Memory, Op, Reactor, probe
from dmcopy.testing.faults import FaultyBackend

SECTORS = 256


class Rig:
    """Two files, a reactor with faults, and memory for one request."""

    def __init__(self, folder: Path, engine: str) -> None:
        for name in ("one", "two"):
            (folder / name).write_bytes(os.urandom(SECTORS << 9))
        self.one = BlockDevice.open(folder / "one", direct=False)
        self.two = BlockDevice.open(folder / "two", write=True, direct=False)
        self.reactor = Reactor(engine)
        self.faulty = FaultyBackend.install(self.reactor)
        self.memory = Memory(SECTORS // 8)

    def do(self, op: Op, device: BlockDevice, sector: int, count: int) -> int:
        done: list[Io] = []
        extents = [(0, count << 9)]
        region = IoRegion(device, sector, count)
        self.reactor.submit(Io(op, region, self.memory, extents, done.append))
        self.reactor.run_until(lambda: done, 10)
        return done[0].error

    def write_behind_a_flush(self, device: BlockDevice) -> int:
        done: list[Io] = []
        region = IoRegion(device, 0, 8)
        write = Io(Op.WRITE, region, self.memory, [(0, 4096)], done.append, preflush=True)
        self.reactor.submit(write)
        self.reactor.run_until(lambda: done, 10)
        return done[0].error

    def copy(self, sector: int, count: int) -> tuple[int, dict[int, int]]:
        done: list[CopyIo] = []
        source, dest = (IoRegion(device, sector, count) for device in (self.one, self.two))
        extents = [(0, count << 9)]
        self.reactor.submit(CopyIo(source, [dest], self.memory, extents, done.append))
        self.reactor.run_until(lambda: done, 10)
        return done[0].error, done[0].write_errors

    def close(self) -> None:
        self.reactor.close()
        self.memory.close()
        self.one.close()
        self.two.close()


@pytest.fixture(params=["threads", "uring"])
def rig(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    if probe()[request.param]:
        pytest.skip(probe()[request.param])
    rig = Rig(tmp_path, request.param)
    yield rig
    rig.close()


def test_a_range(rig: Rig) -> None:
    fault = rig.faulty.fail(rig.one, Op.READ, 8, 4)
    ranges = [(0, 8), (12, 4), (0, 9), (11, 2), (8, 4)]
    got = [rig.do(Op.READ, rig.one, *at) for at in ranges]
    assert got == [0, 0, errno.EIO, errno.EIO, errno.EIO]
    assert fault.hits == 3
    assert rig.do(Op.WRITE, rig.two, 8, 4) == 0


def test_a_number_of_times_and_an_errno(rig: Rig) -> None:
    rig.faulty.fail(rig.two, Op.WRITE, error=errno.ENOSPC, times=2)
    got = [rig.do(Op.WRITE, rig.two, 0, 8) for _ in range(3)]
    assert got == [errno.ENOSPC, errno.ENOSPC, 0]


def test_flushes(rig: Rig) -> None:
    rig.faulty.fail(rig.two, Op.FLUSH)
    assert rig.do(Op.FLUSH, rig.two, 0, SECTORS) == errno.EIO


def test_copies(rig: Rig) -> None:
    before = rig.two.pread(0, SECTORS)
    rig.faulty.fail(rig.one, Op.READ, 0, 1, times=1)
    rig.faulty.fail(rig.two, Op.WRITE, 16, 1, error=errno.ENODEV)
    assert rig.copy(0, 8) == (errno.EIO, {})
    assert rig.copy(16, 8) == (0, {0: errno.ENODEV})
    assert rig.two.pread(0, SECTORS) == before, "a request that fails changes nothing"
    assert rig.copy(0, 8) == (0, {})
    assert rig.copy(32, 8) == (0, {})
    assert rig.two.pread(32, 8) == rig.one.pread(32, 8)


def test_a_flush_fails_the_write_behind_it(rig: Rig) -> None:
    before = rig.two.pread(0, 8)
    rig.faulty.fail(rig.two, Op.FLUSH, error=errno.ENOSPC, times=1)
    assert rig.write_behind_a_flush(rig.two) == errno.ENOSPC
    assert rig.two.pread(0, 8) == before
    assert rig.write_behind_a_flush(rig.two) == 0
    assert rig.two.pread(0, 8) == bytes(4096)
