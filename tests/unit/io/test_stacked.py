"""Devices that map their I/O to others: what gets to them, and in which order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from dmcopy.io import CopyIo, Io, IoRegion, Memory, Op, Reactor
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.io.stacked import StackedDevice
from dmcopy.kcopyd import Client
from dmcopy.kcopyd.moves import Move

SECTORS = 64


class Mapped(StackedDevice):
    """The second half of a disk. `seen`: the operations that came here."""

    path = "mapped"
    sectors = SECTORS
    logical_block_size = 512
    read_only = False
    identity = "mapped"

    def __init__(self, reactor: Reactor) -> None:
        self.disk = SimulatedDisk(2 * SECTORS, "disk")
        self.disk.load(random.Random(1).randbytes(2 * SECTORS << 9))
        self.seen: list[Op] = []
        self._reactor = reactor

    def submit(self, request: Io) -> None:
        self.seen.append(request.op)
        request.device = self.disk
        request.sector += SECTORS
        self._reactor.submit(request)


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    with Reactor(SimulatedBackend(3), stacked=True) as reactor:
        yield reactor


@pytest.fixture
def mapped(reactor: Reactor) -> Mapped:
    return Mapped(reactor)


def do(reactor: Reactor, request: Any) -> None:
    ended: list[Any] = []
    request.notify = ended.append
    reactor.submit(request)
    reactor.run_until(lambda: ended, 10, "the request")


@pytest.mark.parametrize("preflush", [False, True])
def test_what_is_to_be_flushed_first_is(reactor: Reactor, mapped: Any, preflush: bool) -> None:
    """A store relies on it: its data first, then what names it."""
    region, memory = IoRegion(mapped, 0, 8), Memory(1)
    do(reactor, Io(Op.WRITE, region, memory, [(0, 4096)], preflush=preflush))
    assert mapped.seen == [Op.FLUSH] * preflush + [Op.WRITE]
    assert mapped.disk.read(SECTORS, 8) == bytes(4096)


def test_it_is_called_as_what_is_below(reactor: Reactor) -> None:
    assert reactor.backend.name == "simulated"
    assert repr(reactor) == "<Reactor on simulated>"


def test_a_copy_of_a_whole_disk_stays_one_request() -> None:
    """It takes no longer than without stacks: it is cut only where a stacked device has a part."""
    seen: list[object] = []

    class Below(SimulatedBackend):
        def submit(self, request: Any) -> None:
            seen.append(request)
            super().submit(request)

    with Reactor(Below(3), stacked=True) as reactor:
        one, two = SimulatedDisk(8, "one"), SimulatedDisk(8, "two")
        copy = CopyIo(IoRegion(one, 0, 8), [IoRegion(two, 0, 8)], Memory(1), [(0, 4096)], print)
        do(reactor, copy)
    assert seen[0] is copy


def test_a_request_past_the_end_gets_nowhere(reactor: Reactor, mapped: Any) -> None:
    request = Io(Op.WRITE, IoRegion(mapped, SECTORS - 7, 8), Memory(1), [(0, 4096)])
    do(reactor, request)
    assert (request.error, mapped.seen) == (5, [])
    do(reactor, Io(Op.WRITE, IoRegion(mapped, SECTORS - 8, 8), Memory(1), [(0, 4096)]))
    assert mapped.seen == [Op.WRITE]


@pytest.mark.parametrize("source", ["mapped", "disk", "both"])
def test_a_list_of_copies_comes_from_either_kind(
    reactor: Reactor, mapped: Any, source: str
) -> None:
    out, disk = SimulatedDisk(SECTORS, "out"), SimulatedDisk(SECTORS, "other")
    disk.load(random.Random(2).randbytes(SECTORS << 9))
    devices: dict[str, list[Any]] = {"mapped": [mapped], "disk": [disk], "both": [mapped, disk]}
    chosen = devices[source]
    moves = [Move(chosen[n % len(chosen)], n * 8, (7 - n) * 8, 8) for n in range(8)]
    with Client(16, reactor=reactor) as client:
        assert client.copy_list(moves, out, unit=8).wait(10).ok
    for device, sector, dest, count in moves:
        place = (disk, sector) if device is disk else (mapped.disk, SECTORS + sector)
        assert out.read(dest, count) == place[0].read(place[1], count)


@pytest.mark.parametrize("to", ["mapped", "disk"])
def test_a_copy_with_a_mapped_device_in_it(reactor: Reactor, mapped: Any, to: str) -> None:
    disk = SimulatedDisk(SECTORS, "other")
    disk.load(random.Random(2).randbytes(SECTORS << 9))
    source, dest = (disk, mapped) if to == "mapped" else (mapped, disk)
    before = disk.read(0, 24) if to == "mapped" else mapped.disk.read(SECTORS, 24)
    with Client(16, reactor=reactor) as client:
        assert client.copy(IoRegion(source, 0, 24), [IoRegion(dest, 8, 24)]).wait(10).ok
    after = mapped.disk.read(SECTORS + 8, 24) if to == "mapped" else disk.read(8, 24)
    assert before == after


def test_a_copy_between_plain_devices_stays_one_request() -> None:
    """A back end does it in one go, a read linked to a write; what is mapped is taken apart."""
    source, dest = SimulatedDisk(SECTORS, "source"), SimulatedDisk(SECTORS, "dest")
    source.load(random.Random(2).randbytes(SECTORS << 9))
    seen: list[type] = []
    backend = SimulatedBackend(3)
    submit = backend.submit

    def noting(request: Any) -> None:
        seen.append(type(request))
        submit(request)

    backend.submit = noting  # type: ignore[method-assign]
    memory = Memory(1)
    places = IoRegion(source, 0, 8), [IoRegion(dest, 8, 8)]
    with Reactor(backend, stacked=True) as reactor:
        do(reactor, CopyIo(*places, memory, [(0, 4096)], print))
    assert seen[0] is CopyIo
    assert dest.content[4096:8192] == source.content[:4096]
