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
from dmcopy.io.threads import perform

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


@pytest.mark.parametrize("failure", [0, errno.EIO])
def test_a_durable_write_to_a_block_device_is_one_write_and_one_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: int
) -> None:
    (tmp_path / "file").write_bytes(bytes(8192))
    calls: list[tuple[str, bytes]] = []
    with BlockDevice.open(tmp_path / "file", write=True, direct=False) as device:

        def sync(fd: int) -> None:
            calls.append(("flush", os.pread(fd, 4, 0)))
            if failure:
                raise OSError(failure, "no")

        def write(fd: int, views: list[memoryview], offset: int, flags: int) -> int:
            calls.append(("write", bytes([flags])))
            return os.pwrite(fd, views[0], offset)

        device.is_block = True
        monkeypatch.setattr(os, "fdatasync", sync)
        monkeypatch.setattr(os, "pwritev", write)
        memory = Memory(1)
        memory.fill([(0, 4)], b"data")
        request = Io(Op.WRITE, IoRegion(device, 0, 8), memory, [(0, 4096)], fua=True)
        perform(request)
        memory.close()
    assert calls == [("write", b"\0"), ("flush", b"data")]
    assert request.error == failure
