"""BlockDevice on regular files: sizes, ranges, locks, and what it refuses."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmcopy.block import BlockDevice, geometry, syscalls, transfer
from dmcopy.errors import BusyError, ClosedError, DeviceError, UsageError


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "disk.img"
    file.write_bytes(b"\xaa" * (64 * 512))
    return file


def test_sizes(image: Path) -> None:
    with BlockDevice.open(image) as device:
        assert (device.path, device.sectors, device.size_bytes) == (str(image), 64, 32768)
        assert not device.is_block
        assert device.read_only
        assert device.identity == ("file", os.stat(image).st_dev, os.stat(image).st_ino)
        assert device.logical_block_size in (512, 4096)
        assert device.direct == (device.direct_reason == "")


def test_an_odd_size_is_exact_in_bytes_and_whole_in_sectors(image: Path) -> None:
    os.truncate(image, 1000)
    with BlockDevice.open(image) as device:
        assert (device.sectors, device.size_bytes) == (1, 1000)
        assert device.pread(0, 1) == b"\xaa" * 512
    os.truncate(image, 0)
    with BlockDevice.open(image) as device:
        assert (device.sectors, device.pread(0, 0)) == (0, b"")


@pytest.mark.parametrize("direct", [None, False])
def test_reads_and_writes(image: Path, direct: bool | None) -> None:
    with BlockDevice.open(image, write=True, direct=direct) as device:
        device.pwrite(8, b"x" * 4096)
        device.pwrite(24, memoryview(bytearray(b"y" * 4096)))
        device.pwrite(16, b"")
        device.flush()
        assert device.pread(0, 64) == image.read_bytes()
    want = b"\xaa" * 4096 + b"x" * 4096 + b"\xaa" * 4096 + b"y" * 4096 + b"\xaa" * 16384
    assert image.read_bytes() == want


def test_discard_and_zero_out_are_holes(image: Path) -> None:
    with BlockDevice.open(image, write=True) as device:
        device.zero_out(8, 8)
        device.discard(24, 8)
        device.discard(0, 0)
        device.zero_out(64, 0)
    content = image.read_bytes()
    assert len(content) == 32768
    zero = [at for at in range(64) if content[at * 512 : at * 512 + 512] == bytes(512)]
    assert zero == [*range(8, 16), *range(24, 32)]


def _refusing(number: int) -> Callable[..., None]:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def test_zeroes_are_written_where_holes_are_refused(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syscalls, "fallocate", _refusing(errno.EOPNOTSUPP))
    monkeypatch.setattr(transfer, "PIECE", 4096)
    with BlockDevice.open(image, write=True) as device:
        device.zero_out(8, 48)
        with pytest.raises(
            DeviceError, match="cannot discard 8 sectors from 8: Operation not supp"
        ):
            device.discard(8, 8)
    assert image.read_bytes() == b"\xaa" * 4096 + bytes(48 * 512) + b"\xaa" * 4096


def test_a_real_error_is_not_written_over(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "fallocate", _refusing(errno.EIO))
    with (
        BlockDevice.open(image, write=True) as device,
        pytest.raises(DeviceError, match="cannot zero 8 sectors from 8: Input/output error"),
    ):
        device.zero_out(8, 8)
    assert image.read_bytes() == b"\xaa" * 32768


def test_nothing_outside_the_device_is_touched(image: Path) -> None:
    with BlockDevice.open(image, write=True) as device:
        uses: list[Callable[[int, int], Any]] = [
            device.pread,
            device.discard,
            device.zero_out,
            lambda sector, count: device.pwrite(sector, bytes(max(0, count) * 512)),
        ]
        for use in uses:
            for sector, count in ((56, 16), (64, 8), (-8, 8), (1 << 60, 8)):
                with pytest.raises(UsageError, match="are not within its 64"):
                    use(sector, count)
        with pytest.raises(UsageError, match="700 bytes are not a whole number of sectors"):
            device.pwrite(0, bytes(700))
    assert image.read_bytes() == b"\xaa" * 32768


def test_a_handle_for_reading_does_not_write(image: Path) -> None:
    with BlockDevice.open(image) as device:
        for use in (device.discard, device.zero_out):
            with pytest.raises(UsageError, match="opened for reading only"):
                use(0, 8)
        with pytest.raises(UsageError, match="opened for reading only"):
            device.pwrite(0, bytes(512))


def test_a_closed_handle_says_so(image: Path) -> None:
    device = BlockDevice.open(image)
    device.close()
    device.close()
    with pytest.raises(ClosedError, match="closed"):
        device.pread(0, 8)


def test_one_file_is_source_and_destination_but_not_twice_destination(image: Path) -> None:
    with BlockDevice.open(image) as source, BlockDevice.open(image, write=True) as dest:
        assert source.identity == dest.identity
        BlockDevice.open(image).close()
        with pytest.raises(BusyError, match=rf"process {os.getpid()} "):
            BlockDevice.open(image, write=True)
        BlockDevice.open(image, write=True, claim=False).close()
    BlockDevice.open(image, write=True).close()


def test_a_closed_handle_has_no_claim_whoever_still_holds_its_file(image: Path) -> None:
    with BlockDevice.open(image, write=True) as device:
        held = os.dup(device.fileno())  # as io_uring does for a request that was done by a worker
    try:
        BlockDevice.open(image, write=True).close()
    finally:
        os.close(held)


@pytest.mark.parametrize("listed", [True, False])
def test_the_program_that_has_the_lock_is_named(
    image: Path, monkeypatch: pytest.MonkeyPatch, listed: bool
) -> None:
    if not listed:  # overlayfs and btrfs: /proc/locks has numbers that lead nowhere
        monkeypatch.setattr("dmcopy.block.mounts.parse_locks", lambda _text: [])
    script = "import fcntl, time; fcntl.flock(0, fcntl.LOCK_SH); print(flush=True); time.sleep(60)"
    with (
        open(image, "rb") as opened,
        subprocess.Popen(
            [sys.executable, "-c", script], stdin=opened, stdout=subprocess.PIPE
        ) as other,
    ):
        try:
            assert other.stdout is not None
            other.stdout.readline()
            opened.close()
            with pytest.raises(BusyError, match=f"process {other.pid} ") as caught:
                BlockDevice.open(image, write=True)
            assert len(caught.value.holders) == 1
        finally:
            other.kill()


def test_a_file_system_without_locks_is_no_obstacle(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", _refusing(errno.ENOLCK))
    BlockDevice.open(image, write=True).close()


def test_what_is_no_device_is_named_for_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    for path, kind in (
        (str(tmp_path), "a directory"),
        ("/dev/null", "a character device"),
        (str(tmp_path / "pipe"), "a pipe"),
        (str(tmp_path / "socket"), "a socket"),
    ):
        with pytest.raises(UsageError, match=f"{path} is {kind}: give a block device or a reg"):
            BlockDevice.open(path, write=True)


@pytest.mark.parametrize("write", [False, True])
def test_nothing_is_created(tmp_path: Path, write: bool) -> None:
    with pytest.raises(UsageError, match="there is no such device or file"):
        BlockDevice.open(tmp_path / "none", write=write)
    assert list(tmp_path.iterdir()) == []


def test_a_path_through_a_file(image: Path) -> None:
    with pytest.raises(DeviceError, match="cannot open it: Not a directory"):
        BlockDevice.open(image / "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_permission_denied_says_what_to_do(image: Path) -> None:
    image.chmod(0o444)
    with pytest.raises(DeviceError, match="for writing: Permission denied; run as root"):
        BlockDevice.open(image, write=True)


@pytest.mark.parametrize(
    ("name", "answer", "reason"),
    [
        ("_serves", False, "direct reads of it are refused"),
        ("_file_blocks", [], "its file system does no direct I/O"),
    ],
)
def test_where_direct_io_does_not_serve(
    image: Path, monkeypatch: pytest.MonkeyPatch, name: str, answer: Any, reason: str
) -> None:
    monkeypatch.setattr(geometry, name, lambda *_: answer)
    with BlockDevice.open(image) as device:
        assert not device.direct
        assert device.direct_reason == reason
        assert not fcntl.fcntl(device.fileno(), fcntl.F_GETFL) & os.O_DIRECT
    with pytest.raises(DeviceError, match=f"cannot use direct I/O: .*; {reason}"):
        BlockDevice.open(image, direct=True)


def test_a_tail_that_direct_io_cannot_reach(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "_file_blocks", lambda _fd: [4096])
    monkeypatch.setattr(geometry, "_serves", lambda _fd, _block: True)
    os.truncate(image, 9 * 512)
    with BlockDevice.open(image) as device:
        assert device.direct_reason == "its size is not a whole number of 4096-byte blocks"
        assert device.pread(8, 1) == b"\xaa" * 512


def test_transfers_cut_short_are_continued(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv, pwritev = os.preadv, os.pwritev
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:1536]], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, views, at: pwritev(fd, [views[0][:1536]], at))
    with BlockDevice.open(image, write=True, direct=False) as device:
        device.pwrite(1, bytes(range(256)) * 20)
        assert device.pread(1, 10) == bytes(range(256)) * 20


def test_a_file_that_shrinks_meanwhile_is_an_error(image: Path) -> None:
    with BlockDevice.open(image, direct=False) as device:
        os.truncate(image, 1000)
        with pytest.raises(DeviceError, match="cannot read 8 sectors from 0: Input/output error"):
            device.pread(0, 8)


def test_an_interrupted_ioctl_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [InterruptedError(), InterruptedError(), b"\x01\0\0\0"]

    def ioctl(*_: object) -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return bytes(answer)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    assert syscalls.block_is_read_only(3)
    assert answers == []
