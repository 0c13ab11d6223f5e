"""`MappedIo` of either engine does the same; the kernel's is a loop device's node here."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest

from dmcopy.block.loop import LoopDevice
from dmcopy.errors import ClosedError, DeviceError, UsageError
from dmcopy.io import Io, IoRegion, Memory, Op
from dmcopy.io.reactor import Reactor
from dmcopy.kcopyd import Client
from dmcopy.ledger import NoLedger
from dmcopy.mapper.base import Mapper
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.mapped_io import MappedIo
from dmcopy.mapper.userspace import UserMapper
from dmcopy.table import Table
from tests.loop.conftest import LoopFactory

pytestmark = pytest.mark.loop
SECTORS = 256


class NodeMapper(KernelMapper):
    """The kernel's, whose device is a loop device."""

    def __init__(self, loop: LoopDevice, backend: str) -> None:
        super().__init__(ledger=NoLedger(), reactor=Reactor(backend, stacked=True))
        self._loop = loop

    def path(self, name: str) -> str:
        return self._loop.path if name == "d" else f"/dev/mapper/{name}"


@pytest.fixture(params=["uring", "threads", "user"])
def mapper(request: pytest.FixtureRequest, loops: LoopFactory) -> Iterator[Mapper]:
    """Each engine, with a device `d` of SECTORS sectors."""
    (loop,) = loops(SECTORS)
    if request.param == "user":
        with UserMapper() as user:
            user.create("d", Table.parse(f"0 {SECTORS} linear {loop.path} 0"))
            yield user
    else:
        with NodeMapper(loop, request.param) as kernel:
            yield kernel
        kernel.reactor.close()


@pytest.fixture
def device(mapper: Mapper) -> Iterator[MappedIo]:
    with mapper.open("d") as device:
        yield device


def test_what_is_waited_for(device: MappedIo) -> None:
    assert (device.sectors, device.logical_block_size, device.read_only) == (SECTORS, 512, False)
    device.write(3, b"abcd" * 256)
    device.write(5, b"efgh" * 128, fua=True)
    device.flush()
    assert device.read(2, 5) == bytes(512) + b"abcd" * 256 + b"efgh" * 128 + bytes(512)
    device.zero_out(4, 1)
    device.discard(5, 1)  # a hole in the loop device's file
    assert device.read(3, 3) == b"abcd" * 128 + bytes(1024)


def test_a_range_that_is_not_on_the_device_is_refused(device: MappedIo) -> None:
    actions: list[Callable[[], object]] = [
        lambda: device.read(SECTORS, 1),
        lambda: device.write(SECTORS - 1, bytes(1024)),
        lambda: device.discard(SECTORS - 1, 2),
        lambda: device.write(0, bytes(100)),
    ]
    for action in actions:
        with pytest.raises(UsageError):
            action()


def test_many_in_flight(device: MappedIo) -> None:
    """By `submit`, or by the reactor: a region of the device is one as any other."""
    memory, done = Memory(64), list[Io]()
    extents = [[(page << 12, 4096)] for page in range(32)]
    for page, extent in enumerate(extents):
        memory.fill(extent, bytes([page + 1]) * 4096)
        request = Io(Op.WRITE, IoRegion(device, 8 * page, 8), memory, extent, done.append)
        (device.submit if page % 2 else device.reactor.submit)(request)
    device.submit(Io(Op.READ, IoRegion(device, SECTORS - 4, 8), memory, extents[0], done.append))
    device.reactor.run_until(lambda: len(done) == 33, 60)
    assert [one.error for one in done if one.error] == [errno.EIO]
    data = device.read(0, SECTORS)
    assert [data[place] for place in range(0, SECTORS << 9, 4096)] == list(range(1, 33))


def test_kcopyd_copies_within_it(device: MappedIo) -> None:
    device.write(0, b"source.." * 512)
    with Client(16, reactor=device.reactor) as client:
        copies = [IoRegion(device, sector, 8) for sector in (8, 100)]
        job = client.copy(IoRegion(device, 0, 8), copies)
        job.wait(timeout=60)
    assert (job.read_err, job.write_err) == (0, 0)
    assert device.read(0, 16) + device.read(100, 8) == b"source.." * 512 * 3


def test_a_device_that_is_closed_or_missing(mapper: Mapper) -> None:
    with pytest.raises(DeviceError) as caught:
        mapper.open("nothing")
    assert caught.value.errno == errno.ENXIO
    device = mapper.open("d")
    device.close()
    device.close()
    if isinstance(mapper, KernelMapper):
        with pytest.raises(ClosedError):
            device.read(0, 1)


def test_the_mapper_closes_what_it_opened(loops: LoopFactory) -> None:
    (loop,) = loops(SECTORS)
    mapper = NodeMapper(loop, "uring")
    device = mapper.open("d")
    mapper.close()
    with pytest.raises(ClosedError):
        device.fileno()
    mapper.reactor.close()
