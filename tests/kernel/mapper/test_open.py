"""An open device, on both engines: what the table says of it, and what it says when it waits."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from dmcopy.errors import DeadlineError, DeviceError, UsageError
from dmcopy.io import Io, IoRegion, Memory, Op
from dmcopy.mapper.base import Mapper
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.userspace import UserMapper
from dmcopy.table import Table

from .conftest import Disks

pytestmark = pytest.mark.kernel(either=True)
NAME = "dmcopy-open"


@pytest.fixture(params=["kernel", "user"])
def either(request: pytest.FixtureRequest) -> Iterator[Mapper]:
    """Each engine in turn."""
    if request.param == "user":
        with UserMapper(timeout=60) as user:
            yield user
    else:
        kernel: KernelMapper = request.getfixturevalue("mapper")
        with kernel:
            yield kernel


def test_size_and_mode_are_those_of_the_active_table(either: Mapper, disks: Disks) -> None:
    table = Table.parse(f"0 64 linear {disks.a} 0")
    with either.device(NAME, table) as made, made.open() as device:
        assert (device.sectors, device.read_only) == (64, False)
        assert device.table.canonical() == made.table.canonical()
        device.write(0, b"x" * 512)
        either.load(NAME, Table.parse(f"0 128 linear {disks.a} 0"), readonly=True)
        either.suspend(NAME)
        either.resume(NAME)
        assert (device.sectors, device.read_only) == (128, True)
        assert device.read(0, 128) == b"x" * 512 + bytes(127 * 512)
        with pytest.raises(UsageError, match="read-only"):
            device.write(0, bytes(512))
        done: list[Io] = []
        region = IoRegion(device, 0, 8)
        device.submit(Io(Op.WRITE, region, Memory(1), [(0, 4096)], done.append))
        device.reactor.run_until(lambda: done, 60)
        assert done[0].error == errno.EPERM


def test_errors_are_the_devices(either: Mapper, disks: Disks) -> None:
    table = Table.parse(f"0 8 linear {disks.a} 0\n8 8 error")
    with either.device(NAME, table), either.open(NAME) as device:
        assert device.read(0, 8) == bytes(4096)
        for action in (lambda: device.read(8, 8), lambda: device.write(4, bytes(4096))):
            with pytest.raises(DeviceError) as caught:
                action()
            assert caught.value.errno == errno.EIO


def test_io_that_waits_is_given_up(either: Mapper, disks: Disks) -> None:
    """A suspended device can be opened; what was given up is done when it is resumed."""
    with either.device(NAME, Table.parse(f"0 64 linear {disks.a} 0")):
        either.suspend(NAME)
        with either.open(NAME) as device:
            device.timeout = 0.3
            with pytest.raises(DeadlineError, match=r"waited 0\.3 s for WRITE"):
                device.write(0, b"late" * 128)
            either.resume(NAME)
            device.timeout = 60
            while device.read(0, 1) != b"late" * 128:
                either.sleep(0.01)
