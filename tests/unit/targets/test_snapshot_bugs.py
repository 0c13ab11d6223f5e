"""Snapshots: what was wrong once."""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Iterable, Iterator

import pytest

from dmcopy.errors import DeviceError
from dmcopy.io import IoRegion, Reactor
from dmcopy.io.request import Io, Memory, Op
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.mapper.userspace import UserMapper
from dmcopy.table import Table


class Engine:
    """A userspace engine over simulated disks a to d."""

    def __init__(self) -> None:
        self.disks = {name: SimulatedDisk(2048, name) for name in "abcd"}
        reactor = Reactor(SimulatedBackend(7), stacked=True)
        self.mapper = UserMapper(reactor, open_device=self.open)

    def open(self, path: str, write: bool) -> SimulatedDisk:
        del write
        return self.disks[path]

    def make(self, name: str, text: str) -> None:
        self.mapper.create(name, Table.parse(text))

    def status(self, name: str) -> str:
        return str(self.mapper.status(name)[0].status)


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    with made.mapper.reactor, made.mapper:
        yield made


def sectors(seed: int, count: int) -> bytes:
    return random.Random(seed).randbytes(count << 9)


def write_together(engine: Engine, name: str, places: Iterable[int]) -> None:
    """Write the sectors at these places, all at once."""
    device, reactor = engine.mapper.open(name), engine.mapper.reactor
    memory, done = Memory(1), list[Io]()
    for place in places:
        region = IoRegion(device, place, 1)
        reactor.submit(Io(Op.WRITE, region, memory, [(0, 512)], done.append))
    reactor.run_until(lambda: len(done) == len(list(places)), 10, "the writes")
    assert not any(write.error for write in done)


def test_copies_to_a_cow_that_is_a_mapped_device_all_end(engine: Engine) -> None:
    # Those that ended while others were under way were forgotten, and their writers hung.
    engine.make("cow", "0 2048 linear b 0")
    engine.make("o", "0 256 snapshot-origin a")
    engine.make("s", "0 256 snapshot a /dev/mapper/cow P 8")
    engine.mapper.suspend("o")
    engine.mapper.resume("o")
    write_together(engine, "o", range(0, 256, 16))
    assert engine.status("s") == "144/2048 16"


@pytest.mark.parametrize(
    ("header", "number"),
    [
        (b"SnAp" + struct.pack("<3I", 1, 2, 8), errno.EINVAL),
        (b"SnAp" + struct.pack("<3I", 1, 1, 12), errno.EINVAL),
        (b"SnAp" + struct.pack("<3I", 1, 1, 0), errno.EINVAL),
        (b"snap" + struct.pack("<3I", 1, 1, 8), errno.ENXIO),
    ],
)
def test_a_wrong_header_is_refused_with_the_kernels_errno(
    engine: Engine, header: bytes, number: int
) -> None:
    # A wrong chunk size was ENXIO.
    engine.disks["b"].load(header.ljust(2048 << 9, b"\0"))
    with pytest.raises(DeviceError) as caught:
        engine.make("s", "0 256 snapshot a b P 8")
    assert caught.value.errno == number
