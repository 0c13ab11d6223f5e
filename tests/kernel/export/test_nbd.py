"""Devices of the userspace engine as block devices of the kernel's, through its nbd driver."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.asking import ask
from tests.kernel.programs import run
from tests.unit.export.serving import Serving

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(900)]

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
