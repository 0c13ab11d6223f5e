"""Devices of the userspace engine as block devices of the kernel's, through its nbd driver."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.asking import ask
from tests.kernel.programs import run
from tests.unit.export.serving import Serving
from tests.waiting import Program

pytestmark = [pytest.mark.kernel(either=True, cost=10), pytest.mark.timeout(900)]

DEADLINE = 120.0
SIZE = 16 << 20
SECTORS = SIZE >> 9


@pytest.fixture(autouse=True)
def _nbd() -> None:
    if shutil.which("nbd-client") is None:
        pytest.skip("no nbd-client (apt-get install nbd-client)")
    run("modprobe", "nbd", "nbds_max=4")


@contextlib.contextmanager
def attached(socket: Path, name: str, node: str) -> Iterator[str]:
    """An export as a block device."""
    run("nbd-client", "-unix", socket, "-N", name, "-b", 512, node)
    try:
        deadline = time.monotonic() + DEADLINE
        while not int(queue(node, "../size")):
            assert time.monotonic() < deadline, f"{node} has its size"
            time.sleep(0.05)
        yield node
    finally:
        run("nbd-client", "-d", node)


@contextlib.contextmanager
def mounted(node: str, folder: Path, options: str = "rw") -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    run("mount", "-o", options, node, folder)
    try:
        yield folder
    finally:
        run("umount", folder)


def queue(node: str, name: str) -> str:
    return Path("/sys/block", Path(node).name, "queue", name).read_text().strip()


@pytest.mark.kernel(either=False)  # each kernel has another nbd driver
def test_a_mounted_origin_is_written_and_its_snapshot_is_what_it_was(
    scratch_disks: list[Path], tmp_path: Path
) -> None:
    disk, socket = scratch_disks[0], tmp_path / "socket"
    cow = tmp_path / "cow"
    with open(cow, "wb") as file:
        file.truncate(SIZE)
    run("mkfs.ext4", "-q", disk, SIZE >> 10)
    old = os.urandom(1 << 20)
    with mounted(str(disk), tmp_path / "live") as folder:
        (folder / "file").write_bytes(old)
    spec = f"then,,,,0 {SECTORS} snapshot {disk} {cow} P 16;"
    spec += f"live,,,,0 {SECTORS} snapshot-origin {disk}"
    with (
        Serving("--concise", spec, "--socket", socket, lines=2),
        attached(socket, "live", "/dev/nbd0") as live,
        attached(socket, "then", "/dev/nbd1") as then,
    ):
        assert queue(live, "write_cache") == "write back"
        assert queue(live, "fua") == "1"
        assert int(queue(live, "discard_max_bytes")) > 0
        new = os.urandom(2 << 20)
        with mounted(live, tmp_path / "live") as folder:
            (folder / "file").write_bytes(new)
            (folder / "other").write_bytes(old)
            os.sync()
            run("fstrim", folder)  # a hint, which an origin does not take
            # The journal of the snapshot is clean: it was made of an unmounted file system.
            with mounted(then, tmp_path / "then") as before:
                assert (before / "file").read_bytes() == old
                assert not (before / "other").exists()
                (before / "mine").write_bytes(new)
            assert (folder / "file").read_bytes() == new
        run("e2fsck", "-fn", live)
        run("e2fsck", "-fn", then)
        # The kernel's device-mapper over ours.
        table = f"0 {SECTORS} linear {live} 0"
        run("dmsetup", "create", "over", "--table", table)
        try:
            with mounted("/dev/mapper/over", tmp_path / "over", "ro") as folder:
                assert (folder / "other").read_bytes() == old
        finally:
            run("dmsetup", "remove", "--retry", "over")
    with mounted(str(disk), tmp_path / "live", "ro") as folder:
        assert (folder / "file").read_bytes() == new
        assert not (folder / "mine").exists()


def test_a_disk_whose_power_is_cut_under_a_file_system(tmp_path: Path) -> None:
    socket, disk = tmp_path / "socket", tmp_path / "disk"
    words = (disk, "--size", SIZE, "--socket", socket)
    with Serving(*words, noun="disk serve") as serving:
        with attached(socket, "disk", "/dev/nbd0") as node:
            run("mkfs.ext4", "-q", node)
            (tmp_path / "mnt").mkdir()
            run("mount", node, tmp_path / "mnt")
            kept, lost = tmp_path / "mnt" / "kept", tmp_path / "mnt" / "lost"
            with open(kept, "wb") as file:
                file.write(b"k" * 100_000)
                os.fsync(file.fileno())
            lost.write_bytes(b"l" * 100_000)
            assert ask(f"{socket}.control", {"do": "cut", "seed": 3})["ok"]
            run("umount", tmp_path / "mnt")
        with (
            attached(socket, "disk", "/dev/nbd0") as node,
            mounted(node, tmp_path / "mnt"),
        ):
            assert kept.read_bytes() == b"k" * 100_000
            content = lost.read_bytes() if lost.exists() else b""
            assert content in (b"", b"l" * 100_000)
        code, said = serving.end()
        assert (code, said) == (0, "dmcopy: disk: the power was cut\n")
    run("e2fsck", "-fn", disk)


@contextlib.contextmanager
def mapped(name: str, table: str) -> Iterator[str]:
    """A device of the kernel's device-mapper."""
    run("dmsetup", "create", name, "--table", table)
    try:
        yield f"/dev/mapper/{name}"
    finally:
        run("dmsetup", "remove", "--retry", name)


def test_the_kernels_targets_above_and_below_ours(
    scratch_disks: list[Path], tmp_path: Path
) -> None:
    """A linear of the kernel's, our snapshot of it, and on that a snapshot of the kernel's."""
    sectors, socket, cow = 8 << 11, tmp_path / "socket", tmp_path / "cow"
    with open(cow, "wb") as file:
        file.truncate(16 << 20)
    old, new = os.urandom(1 << 20), os.urandom(1 << 20)
    with mapped("below", f"0 {sectors} linear {scratch_disks[0]} 2048") as below:
        put(below, 1 << 20, old)
        spec = f"then,,,,0 {sectors} snapshot {below} {cow} P 8;"
        spec += f"live,,,,0 {sectors} snapshot-origin {below}"
        run("dd", "if=/dev/zero", f"of={scratch_disks[1]}", "bs=4k", "count=1", "conv=fsync")
        with (
            Serving("--concise", spec, "--socket", socket, lines=2),
            attached(socket, "live", "/dev/nbd0") as live,
            attached(socket, "then", "/dev/nbd1") as then,
            mapped("above", f"0 {sectors} snapshot {then} {scratch_disks[1]} P 8") as above,
        ):
            put(live, 1 << 20, new)
            assert get(above, 1 << 20, 1 << 20) == old
            put(above, (1 << 20) + 4096, new[:4096])
            assert get(above, 1 << 20, 12288) == old[:4096] + new[:4096] + old[8192:12288]
            assert get(then, 1 << 20, 1 << 20) == old
        assert get(below, 1 << 20, 1 << 20) == new
    assert get(str(scratch_disks[0]), 2 << 20, 1 << 20) == new


def test_suspend_and_reload_while_fio_runs(scratch_disks: list[Path], tmp_path: Path) -> None:
    socket, sectors = tmp_path / "socket", 16 << 11
    table = f"0 {sectors} linear {scratch_disks[0]} 0"
    with (
        Serving("--table", table, "--name", "live", "--socket", socket),
        attached(socket, "live", "/dev/nbd0") as live,
        mapped("over", f"0 {sectors} linear {live} 0") as over,
    ):
        words = ["--name=verify", "--ioengine=libaio", "--direct=1", f"--filename={over}"]
        words += ["--rw=randwrite", "--bs=4k", "--iodepth=16", "--size=1M"]
        words += ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]
        command = ["fio", "--output-format=json", *words]
        with Program(command, stdout=subprocess.PIPE, text=True) as fio:
            reloads = 0
            while fio.poll() is None or reloads < 3:
                run("dmsetup", "suspend", "over")
                try:
                    run("dmsetup", "reload", "over", "--table", f"0 {sectors} linear {live} 0")
                finally:  # fio, too, ends only then
                    run("dmsetup", "resume", "over")
                reloads += 1
            assert fio.stdout is not None
            said = fio.stdout.read()
        assert fio.returncode == 0, said
        (job,) = json.loads(said[said.index("{") :])["jobs"]
        assert job["error"] == 0
        assert job["read"]["total_ios"] == job["write"]["total_ios"] > 0


def put(path: str, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def get(path: str, at: int, size: int) -> bytes:
    """What is on a disk now, whatever the page cache holds of it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(fd, size, at)
    finally:
        os.close(fd)
