"""A disk in trouble: bits that change, requests that end early or late, flushes that do nothing."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from dmcopy.errors import DeviceError
from dmcopy.io import Io, IoRegion, Memory, Op, Reactor, whole
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.kcopyd import Client
from dmcopy.testing.troubled import (
    Latency,
    TroubledDisk,
    constant,
    lognormal,
    stalls,
    uniform,
)

CONTENT = bytes(range(256)) * 32


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    with Reactor(SimulatedBackend(1), stacked=True) as made:
        yield made


@pytest.fixture
def below() -> SimulatedDisk:
    disk = SimulatedDisk(16)
    disk.load(CONTENT)
    return disk


@pytest.fixture
def disk(reactor: Reactor, below: SimulatedDisk) -> TroubledDisk:
    return TroubledDisk(below, reactor, seed=7)


def bits(one: bytes, other: bytes) -> int:
    return sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True))


def test_a_disk_in_no_trouble(reactor: Reactor, disk: TroubledDisk, below: SimulatedDisk) -> None:
    assert whole.read(reactor, disk, 0, 16) == CONTENT
    whole.write(reactor, disk, 3, b"x" * 512)
    disk.flush()
    disk.zero_out(0, 1)
    disk.discard(1, 1)
    assert below.read(0, 4) == bytes(1024) + CONTENT[1024:1536] + b"x" * 512
    with pytest.raises(OSError, match="has no descriptor"):
        disk.fileno()
    assert disk.identity is disk


def test_what_is_read_is_changed_silently(reactor: Reactor, disk: TroubledDisk) -> None:
    fault = disk.corrupt(4, 2, times=2)
    assert whole.read(reactor, disk, 0, 4) == CONTENT[:2048]
    first = whole.read(reactor, disk, 0, 16)
    assert bits(first, CONTENT) == 1
    assert bits(whole.read(reactor, disk, 5, 1), CONTENT[2560:3072]) == 1
    assert whole.read(reactor, disk, 0, 16) == CONTENT
    assert (disk.corrupted, fault.times) == (2, 0)


def test_what_is_written_is_changed_silently_and_the_caller_keeps_his(
    reactor: Reactor, disk: TroubledDisk, below: SimulatedDisk
) -> None:
    disk.corrupt(op=Op.WRITE, times=1)
    memory = Memory(1)
    io = Io(Op.WRITE, IoRegion(disk, 0, 8), memory, [(0, 4096)])
    whole.perform(reactor, io)
    assert bits(below.read(0, 8), bytes(4096)) == 1
    assert bytes(memory.view[:4096]) == bytes(4096)


@pytest.mark.parametrize(("block", "count", "done"), [(512, 5, 2), (512, 1, 0), (4096, 8, 0)])
def test_a_request_that_ends_in_its_middle(
    reactor: Reactor, block: int, count: int, done: int
) -> None:
    below = SimulatedDisk(16, logical_block_size=block)
    disk = TroubledDisk(below, reactor)
    disk.short(Op.WRITE, times=1)
    with pytest.raises(DeviceError) as caught:
        whole.write(reactor, disk, 0, b"x" * (count << 9))
    assert caught.value.errno == errno.EIO
    assert below.read(0, 16) == (b"x" * (done << 9)).ljust(16 << 9, b"\0")
    disk.short(Op.READ)
    memory = Memory(1)
    io = Io(Op.READ, IoRegion(disk, 0, count), memory, [(0, count << 9)])
    with pytest.raises(DeviceError):
        whole.perform(reactor, io)
    assert bytes(memory.view[: done << 9]) == b"x" * (done << 9)
    assert disk.shortened == 2


@pytest.mark.parametrize(
    ("latency", "least", "most"),
    [
        (constant(0.5), 0.5, 0.51),
        (uniform(1, 2), 1, 2.01),
        (lognormal(0.2, 0.1), 0.1, 0.4),
        (stalls(1.0, 3.0), 3, 3.01),
        (stalls(0.0, 3.0, 0.1), 0.1, 0.12),
    ],
)
def test_requests_take_longer(
    reactor: Reactor, disk: TroubledDisk, latency: Latency, least: float, most: float
) -> None:
    disk.latency = latency
    began = reactor.time()
    assert whole.read(reactor, disk, 0, 16) == CONTENT
    assert least <= reactor.time() - began <= most


def test_flushes_and_fua_that_do_nothing(
    reactor: Reactor, disk: TroubledDisk, below: SimulatedDisk
) -> None:
    disk.drop_flushes = disk.forget_fua = True
    whole.write(reactor, disk, 0, b"x" * 512, fua=True)
    disk.flush()
    assert below.writes == 1
    assert below._flushed == 0
    assert not below._cache[0].durable


def test_a_copy_from_a_disk_that_lies_is_found_by_a_second_look(
    reactor: Reactor, disk: TroubledDisk
) -> None:
    disk.corrupt(8, 1, times=1)
    dest = SimulatedDisk(16, "dest")
    with Client(4, reactor=reactor) as client:
        job = client.copy(IoRegion(disk, 0, 16), [IoRegion(dest, 0, 16)])
        job.wait(timeout=10)
        assert job.ok
    assert bits(dest.read(0, 16), CONTENT) == 1


def test_one_seed_has_one_outcome(reactor: Reactor, below: SimulatedDisk) -> None:
    def outcome(seed: int) -> bytes:
        disk = TroubledDisk(below, reactor, seed=seed)
        disk.corrupt()
        return whole.read(reactor, disk, 0, 16)

    assert outcome(1) == outcome(1)
    assert len({outcome(seed) for seed in range(9)}) > 5
