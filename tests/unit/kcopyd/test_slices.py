"""How jobs are cut, and how many requests are in flight together."""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest

from dmcopy.io import Io, IoRegion, Op, Reactor
from dmcopy.io.simulated import SimulatedDisk
from dmcopy.kcopyd import Client, Failure, Flag, Throttle
from dmcopy.kcopyd.subjob import zero_runs

SECTORS = 1024


def watched(reactor: Reactor) -> list[Any]:
    """Return the requests that will have been submitted."""
    submitted: list[Any] = []
    submit = reactor.submit

    def watch(request: Any) -> None:
        submitted.append(request)
        submit(request)

    reactor.submit = watch
    return submitted


def disk(block: int = 512) -> SimulatedDisk:
    new = SimulatedDisk(SECTORS, f"blocks of {block}", logical_block_size=block)
    new.load(random.Random(block).randbytes(SECTORS << 9))
    return new


@pytest.mark.parametrize("blocks", [(16384, 512), (512, 16384), (16384, 16384), (8192, 16384)])
@pytest.mark.parametrize("flags", [0, Flag.SPARSE])
def test_slices_are_whole_blocks(reactor: Reactor, blocks: tuple[int, int], flags: int) -> None:
    """A sub-job of 40 sectors is one block of 32 and a bit; half a block cannot be written."""
    source, dest = disk(blocks[0]), disk(blocks[1])
    submitted = watched(reactor)
    with Client(20, reactor=reactor, sub_job_sectors=40) as client:
        job = client.copy(IoRegion(source, 0, SECTORS), [IoRegion(dest, 0, SECTORS)], flags)
        assert job.wait(100).ok
    assert dest.content == source.content
    for request in submitted:
        copy = [request.region] if flags else [request.source, *request.dests]
        for region in copy:
            region.check()
    pieces = [request for request in submitted if not flags or request.device is source]
    assert [(request.region if flags else request.source).count for request in pieces] == [32] * (
        SECTORS // 32
    )


def test_a_slice_whose_errors_are_ignored_is_one_request_until_it_fails(reactor: Reactor) -> None:
    """What could not be read is not read again: it is noted, and zeroes are written."""
    source, dest = disk(), SimulatedDisk(SECTORS, "dest")
    source.fail(Op.READ, 24, 1, times=1)
    submitted = watched(reactor)
    with Client(32, reactor=reactor, sub_job_sectors=16) as client:
        regions = IoRegion(source, 0, 64), [IoRegion(dest, 0, 64)]
        job = client.copy(*regions, Flag.IGNORE_ERROR).wait(100)
        statistics = client.statistics()
    assert (job.read_err, job.write_err, job.progress()) == (1, 0, (64,))
    assert job.read_failures == [Failure(IoRegion(source, 16, 16), errno.EIO)]
    assert dest.read(0, 64) == source.read(0, 16) + bytes(16 << 9) + source.read(32, 32)
    assert [type(request) is Io for request in submitted] == [False] * 4 + [True]
    assert (submitted[-1].op, submitted[-1].region) == (Op.WRITE, IoRegion(dest, 16, 16))
    assert (statistics.sectors_read, statistics.sectors_written) == (48, 64)


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("count", [8, 64])
def test_depth_is_the_most_in_flight(reactor: Reactor, depth: int, count: int) -> None:
    """Small jobs that are no neighbours, and slices of one job: the limit is for both."""
    source, dest = disk(), disk(4096)
    most = 0
    submit = reactor.submit

    def watch(request: Any) -> None:
        nonlocal most
        most = max(most, client.statistics().in_flight)
        submit(request)

    reactor.submit = watch
    with Client(64, reactor=reactor, sub_job_sectors=8, depth=depth) as client:
        for sector in range(0, SECTORS, 2 * count):
            client.copy(IoRegion(source, sector, count), [IoRegion(dest, sector, count)])
    assert most == depth


def test_a_slice_of_a_region_is_on_it() -> None:
    region = IoRegion(disk(), 100, 50)
    assert region.slice(0, 50) == region
    assert region.slice(10, 20) == IoRegion(region.device, 110, 20)
    assert region.slice(10, 40).end == region.end


def test_runs_of_zeroes_are_whole_blocks() -> None:
    """The last may be short; the rest of a block that is not all zero is data."""
    data = bytes(8192) + b"x" + bytes(8191) + bytes(4096) + b"y" * 512
    assert zero_runs(data, 4096) == [(True, 0, 16), (False, 16, 8), (True, 24, 16), (False, 40, 1)]
    assert zero_runs(data, 8192) == [(True, 0, 16), (False, 16, 25)]
    assert zero_runs(b"", 4096) == []


class Counting(Throttle):
    """Says no three times to the first request, and notes what it was told."""

    def __init__(self) -> None:
        super().__init__(1)
        self.slept: list[int] = []
        self.most = 0

    def must_wait(self, now: float, slept: int) -> bool:
        self.account(now)
        self.slept.append(slept)
        return len(self.slept) <= 3

    def account(self, now: float) -> None:
        self.most = max(self.most, self.in_flight)
        super().account(now)


@pytest.mark.parametrize("count", [1, 8, 64])
def test_a_throttle_hears_of_every_request(reactor: Reactor, count: int) -> None:
    """What is in flight, neighbours as one; and how often one has waited, so that it ends."""
    throttle = Counting()
    source, dest = disk(), disk(4096 if count == 8 else 512)
    with Client(64, reactor=reactor, throttle=throttle, sub_job_sectors=8, depth=4) as client:
        for sector in range(0, 512, count if count == 1 else 2 * count):
            client.copy(IoRegion(source, sector, count), [IoRegion(dest, sector, count)])
    assert throttle.most == 4, "as many as the depth lets"
    assert throttle.in_flight == 0
    assert throttle.slept[:6] == [0, 1, 2, 3, 0, 0]
