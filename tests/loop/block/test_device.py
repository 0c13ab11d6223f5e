"""Block devices: sizes, whole transfers, discard and zero out, and the refusal of what is used."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dmcopy.block import BlockDevice
from dmcopy.block.devno import devno_text, openable
from dmcopy.block.loop import loop_device
from dmcopy.errors import BusyError, DeviceError, UsageError

pytestmark = pytest.mark.loop


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, env={**os.environ, "LC_ALL": "C"})


def test_sizes(loops: Any) -> None:
    (loop,) = loops(1001)
    with BlockDevice.open(loop.path) as device:
        assert (device.sectors, device.size_bytes) == (1001, 1001 * 512)
        assert (device.logical_block_size, device.is_block, device.direct) == (512, True, True)
        assert device.read_only
        assert device.identity == ("block", os.stat(loop.path).st_rdev)


def test_a_closed_handle_has_no_claim_whoever_still_holds_its_file(loops: Any) -> None:
    (loop,) = loops(64)
    with BlockDevice.open(loop.path, write=True) as device:
        held = os.dup(device.fileno())  # as io_uring does for a request that was done by a worker
    try:
        BlockDevice.open(loop.path, write=True).close()
    finally:
        os.close(held)


def test_blocks_of_4096_bytes(loops: Any) -> None:
    (loop,) = loops(64, sector_size=4096)
    with BlockDevice.open(loop.path, write=True) as device:
        assert (device.logical_block_size, device.physical_block_size) == (4096, 4096)
        device.pwrite(8, b"a" * 4096)
        assert device.pread(8, 8) == b"a" * 4096
        for use in (device.pread, device.discard, device.zero_out):
            with pytest.raises(UsageError, match="give multiples of 8 sectors"):
                use(8, 9)


@pytest.mark.parametrize("direct", [True, False])
def test_what_is_written_is_read_and_nothing_else_changes(loops: Any, direct: bool) -> None:
    (loop,) = loops(8192)
    data = os.urandom(3_000 * 512)
    with BlockDevice.open(loop.path, write=True, direct=direct) as device:
        device.pwrite(0, b"\xff" * (8192 * 512))
        device.pwrite(1001, data)
        device.zero_out(1003, 5)
        device.flush()
        got = device.pread(0, 8192)
    data = data[: 2 * 512] + bytes(5 * 512) + data[7 * 512 :]
    assert got == b"\xff" * (1001 * 512) + data + b"\xff" * ((8192 - 4001) * 512)


def test_discard_on_a_loop_device_is_a_hole_in_its_file(loops: Any) -> None:
    (loop,) = loops(2048)
    with BlockDevice.open(loop.path, write=True) as device:
        device.pwrite(0, b"x" * (2048 * 512))
        device.discard(1024, 1024)
        device.flush()
    assert os.stat(loop.backing).st_blocks == 1024
    assert Path(loop.backing).read_bytes() == b"x" * (1024 * 512) + bytes(1024 * 512)


def test_a_second_writer_is_refused_and_a_reader_is_not(loops: Any) -> None:
    (loop,) = loops(64)
    with BlockDevice.open(loop.path, write=True) as device:
        with pytest.raises(BusyError, match=f"process {os.getpid()} .*this process") as caught:
            BlockDevice.open(loop.path, write=True)
        assert caught.value.exit_code == 6
        with BlockDevice.open(loop.path) as reader:
            assert reader.identity == device.identity
        BlockDevice.open(loop.path, write=True, claim=False).close()
    BlockDevice.open(loop.path, write=True).close()


def test_a_mounted_device_is_refused_with_its_mount_point(loops: Any, tmp_path: Path) -> None:
    (loop,) = loops(8192)
    point = tmp_path / "a mount"
    point.mkdir()
    _run("mkfs.ext4", "-q", "-F", loop.path)
    _run("mount", loop.path, str(point))
    try:
        with pytest.raises(BusyError, match=r"mounted on .*/a mount; unmount it first"):
            BlockDevice.open(loop.path, write=True)
        BlockDevice.open(loop.path).close()
    finally:
        _run("umount", str(point))


def test_a_disk_whose_partition_is_mounted_is_refused(loops: Any, tmp_path: Path) -> None:
    (loop,) = loops(16384)
    _run("addpart", loop.path, "1", "2048", "8192")
    try:
        _run("mkfs.ext4", "-q", "-F", f"{loop.path}p1")
        _run("mount", f"{loop.path}p1", str(tmp_path))
        try:
            wanted = rf"mounted on {tmp_path} \(partition {loop.name}p1\)"
            with pytest.raises(BusyError, match=wanted):
                BlockDevice.open(loop.path, write=True)
        finally:
            _run("umount", str(tmp_path))
    finally:
        _run("delpart", loop.path, "1")


def test_a_swap_area_is_refused(loops: Any) -> None:
    (loop,) = loops(8192)
    _run("mkswap", loop.path)
    try:
        _run("swapon", loop.path)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no swap here: {error.stderr!r}")
    try:
        with pytest.raises(BusyError, match="in use by swap; switch it off first"):
            BlockDevice.open(loop.path, write=True)
    finally:
        _run("swapoff", loop.path)


def test_what_a_loop_device_is_made_of_is_refused(loops: Any) -> None:
    (lower,) = loops(64)
    with loop_device(lower.path) as upper:
        for path in (lower.path, lower.backing):
            with pytest.raises(BusyError, match="loop device /dev/loop"):
                BlockDevice.open(path, write=True)
        BlockDevice.open(upper.path, write=True).close()


def test_a_read_only_device_cannot_be_written(loops: Any) -> None:
    (loop,) = loops(64, read_only=True)
    with pytest.raises(DeviceError, match="Read-only file system; the device is set read-only"):
        BlockDevice.open(loop.path, write=True)
    BlockDevice.open(loop.path).close()


def test_an_error_of_the_disk_is_a_device_error(loops: Any) -> None:
    (loop,) = loops(64)
    if Path(f"/sys/block/{loop.name}/loop/dio").read_text().strip() != "1":
        pytest.skip("a buffered loop device reads zeroes past the end of its file, and no error")
    with BlockDevice.open(loop.path, write=True) as device:
        os.truncate(loop.backing, 4096)
        with pytest.raises(DeviceError, match=r"cannot read 8 sectors from 32") as caught:
            device.pread(32, 8)
        assert caught.value.errno == errno.EIO


def test_zeroing_may_give_the_space_up(loops: Any) -> None:
    """A rig's disk of which each test wants zeroes need not be written from end to end."""
    (loop,) = loops(8192)
    file = loops.folder / "disk0.img"
    with BlockDevice.open(loop.path, write=True) as device:
        device.pwrite(0, b"a" * (8192 << 9))
        device.flush()
        written = file.stat().st_blocks
        assert written >= 8192
        device.zero_out(8, 8184, unmap=True)
        assert device.pread(0, 16) == b"a" * 4096 + bytes(4096)
        assert device.pread(8184, 8) == bytes(4096)
    assert file.stat().st_blocks < written // 4


def test_a_disk_says_each_time_whether_it_has_a_write_cache(loops: Any) -> None:
    (loop,) = loops(64)
    attribute = Path(f"/sys/block/{loop.name}/queue/write_cache")
    with (
        BlockDevice.open(loop.path) as device,
        BlockDevice.open(loop.path, direct=False) as buffered,
    ):
        assert not device.write_through
        try:
            attribute.write_text("write through")
            assert device.write_through
            assert not buffered.write_through  # the page cache is one, too
        finally:  # it would outlive the file
            attribute.write_text("write back")
        assert not device.write_through


def test_a_device_is_opened_by_its_number(loops: Any) -> None:
    """Without udev, too, which alone makes the links in /dev/block."""
    (loop,) = loops(64)
    number = devno_text(os.stat(loop.path).st_rdev)
    with BlockDevice.open(openable(number)) as device:
        assert device.sectors == 64
    assert openable("/dev/sda") == "/dev/sda"
    assert openable("4095:1") == "/dev/block/4095:1"
