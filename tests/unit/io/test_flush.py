"""A flush covers the whole device, whatever region its request names."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from dmcopy.block import BlockDevice
from dmcopy.io import Io, IoRegion, Memory, Op, Reactor, probe

CACHESTAT = 451  # since Linux 6.5


def dirty_pages(fd: int) -> int:
    """Return how many pages of a file wait to be written."""
    libc = ctypes.CDLL(None, use_errno=True)
    whole = ctypes.create_string_buffer(struct.pack("QQ", 0, 0))
    counts = ctypes.create_string_buffer(40)
    if libc.syscall(CACHESTAT, fd, whole, counts, 0):
        if ctypes.get_errno() in (errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP):
            pytest.skip("this kernel cannot count dirty pages (cachestat)")
        raise OSError(ctypes.get_errno(), "cachestat")
    return int(struct.unpack("5Q", counts)[1])


def flush(device: BlockDevice, sector: int, memory: Memory) -> Io:
    del memory
    return Io(Op.FLUSH, IoRegion(device, sector, 0))


def write_behind_a_flush(device: BlockDevice, sector: int, memory: Memory) -> Io:
    region = IoRegion(device, sector & ~7, 8)
    return Io(Op.WRITE, region, memory, [(0, 4096)], preflush=True, fua=True)


@pytest.mark.parametrize("sector", [0, 1000])
@pytest.mark.parametrize("engine", ["threads", "uring"])
@pytest.mark.parametrize("make", [flush, write_behind_a_flush])
def test_a_flush_leaves_nothing_dirty(
    tmp_path: Path, engine: str, sector: int, make: Callable[[BlockDevice, int, Memory], Io]
) -> None:
    if probe()[engine]:
        pytest.skip(probe()[engine])
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    with BlockDevice.open(tmp_path / "file", write=True, direct=False) as device:
        device.flush()
        device.pwrite(0, os.urandom(1 << 20))
        if not dirty_pages(device.fileno()):
            pytest.skip("nothing is ever dirty on this file system")
        done: list[Io] = []
        memory = Memory(1)
        request = make(device, sector, memory)
        with Reactor(engine) as reactor:
            request.notify = done.append
            reactor.submit(request)
            reactor.run_until(lambda: done, 30)
        assert done[0].error == 0
        assert dirty_pages(device.fileno()) == 0
        memory.close()
