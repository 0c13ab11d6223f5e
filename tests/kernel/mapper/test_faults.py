"""Faults on ranges, with real I/O: each range does what was asked, and its neighbours do not."""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Iterator

import pytest

from dmcopy.mapper.faults import Faulty
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.table import Linear, Table

from .conftest import Disks

pytestmark = pytest.mark.kernel
SECTORS = 64


@pytest.fixture
def work(mapper: KernelMapper, disks: Disks) -> Iterator[Faulty]:
    with mapper.device("work", Table.of(SECTORS, Linear(disks.a, 0))) as made:
        device = Faulty(made)
        for sector in range(0, SECTORS, 8):
            assert write(device, sector, b"a") == 0
        yield device


def _io(device: Faulty, flags: int, sector: int, data: bytes | None) -> bytes | int:
    """Read or write 8 sectors past the page cache; return the data, or the errno."""
    fd = os.open(device, flags | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 4096) as memory:
            if data is not None:
                memory[:] = data * 4096
                os.pwritev(fd, [memory], sector * 512)
                return 0
            os.preadv(fd, [memory], sector * 512)
            return bytes(memory[:1])
    except OSError as error:
        return error.errno or -1
    finally:
        os.close(fd)


def read(device: Faulty, sector: int) -> bytes | int:
    return _io(device, os.O_RDONLY, sector, None)


def write(device: Faulty, sector: int, data: bytes) -> bytes | int:
    return _io(device, os.O_WRONLY, sector, data)


def test_errors_and_back(work: Faulty) -> None:
    work.error("8:8", (24, 8))
    assert [read(work, sector) for sector in (0, 8, 16, 24, 32)] == [
        *(b"a", errno.EIO, b"a", errno.EIO, b"a")
    ]
    assert write(work, 8, b"b") == errno.EIO
    work.restore("8:8")
    assert (read(work, 8), read(work, 24)) == (b"a", errno.EIO)
    work.restore()
    assert read(work, 24) == b"a"
    assert work.device.table.lines[0].length == SECTORS


def test_writes_fail_or_vanish_and_reads_are_good(work: Faulty) -> None:
    work.write_error("0:8")
    work.drop_writes("8:8")
    work.zero("16:8")
    assert [write(work, sector, b"b") for sector in (0, 8, 16, 24)] == [errno.EIO, 0, 0, 0]
    assert [read(work, sector) for sector in (0, 8, 16, 24)] == [b"a", b"a", b"\0", b"b"]
    work.restore()
    assert [read(work, sector) for sector in (0, 8, 16, 24)] == [b"a", b"a", b"a", b"b"]


def test_delays(work: Faulty) -> None:
    work.delay(700, 0, "8:8")

    def took(sector: int) -> float:
        started = time.monotonic()
        assert read(work, sector) == b"a"
        return time.monotonic() - started

    assert took(8) >= 0.7
    assert took(0) < 0.7
    work.restore()
    assert took(8) < 0.7


def test_the_whole_device(work: Faulty) -> None:
    work.error()
    assert read(work, 0) == read(work, 56) == errno.EIO
