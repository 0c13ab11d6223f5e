"""Devices of the userspace engine as files and loop devices, on the kernels of the rig."""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.ledger import Ledger
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.table import Linear, Table
from tests.kernel.programs import run
from tests.unit.export.serving import Serving

pytestmark = [pytest.mark.kernel(either=True, cost=8), pytest.mark.timeout(900)]
SIZE = 8 << 20
SECTORS = SIZE >> 9


@pytest.fixture(autouse=True)
def _machine() -> None:
    run("modprobe", "fuse")
    run("modprobe", "loop")


@contextlib.contextmanager
def mounted(node: str, folder: Path) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    run("mount", node, folder)
    try:
        yield folder
    finally:
        run("umount", folder)


def image(path: Path) -> Path:
    with open(path, "wb") as file:
        file.truncate(SIZE)
    return path


def test_a_file_is_read_and_written_at_any_byte(tmp_path: Path) -> None:
    disk, place = image(tmp_path / "disk"), tmp_path / "served"
    model = bytearray(SIZE)
    rng = random.Random(3)
    with Serving("--via", "fuse", "--at", place, disk) as serving:
        fd = os.open(place, os.O_RDWR)
        try:
            for size in (1, 700, 4096, 100_000, 1 << 20):
                start = rng.randrange(SIZE - size)
                data = rng.randbytes(size)
                assert os.pwrite(fd, data, start) == size
                model[start : start + size] = data
                assert os.pread(fd, size, start) == data
            os.fsync(fd)
        finally:
            os.close(fd)
        run("fallocate", "--punch-hole", "-o", 5000, "-l", 1 << 20, place)
        model[5000 : 5000 + (1 << 20)] = bytes(1 << 20)
        run("cmp", disk, place)
        run("truncate", "-s", 0, place, code=1)
        assert serving.end() == (0, "")
    assert disk.read_bytes() == model
    assert not place.exists()


@pytest.mark.kernel(either=False)  # each kernel has another loop driver, and another FUSE
def test_a_snapshot_and_its_origin_are_mounted(tmp_path: Path) -> None:
    """And a target of the kernel's is stacked on a device of ours."""
    disk, cow = image(tmp_path / "disk"), image(tmp_path / "cow")
    run("mkfs.ext4", "-q", disk)
    old = os.urandom(1 << 20)
    with mounted(str(disk), tmp_path / "live") as folder:
        (folder / "file").write_bytes(old)
    spec = f"then,,,,0 {SECTORS} snapshot {disk} {cow} P 16;"
    spec += f"live,,,,0 {SECTORS} snapshot-origin {disk}"
    mapper = KernelMapper(ledger=Ledger(tmp_path / "ledger"), timeout=60)
    with Serving("--via", "loop", "--concise", spec, lines=2) as serving:
        then, live = serving.found
        for node in (then, live):
            shown = Path("/sys/block", Path(node).name, "loop", "dio").read_text()
            assert shown == "1\n"
        stacked = mapper.device("over", Table.of(SECTORS, Linear(live, 0)))
        with stacked as over, mounted(over.path, tmp_path / "live") as folder:
            (folder / "file").write_bytes(b"new" * 300_000)
            os.sync()
            run("fstrim", folder)
            with mounted(then, tmp_path / "then") as older:
                assert (older / "file").read_bytes() == old
                (older / "own").write_text("own")
        for node in (then, live):
            run("e2fsck", "-fn", node)
        assert serving.end() == (0, "")
    with mounted(str(disk), tmp_path / "live") as folder:
        assert (folder / "file").read_bytes() == b"new" * 300_000


def test_a_server_that_is_killed_leaves_nothing_that_waits(tmp_path: Path) -> None:
    disk = image(tmp_path / "disk")
    table = f"0 {SECTORS} linear {disk} 0"
    serving = Serving("--via", "loop", "--at", tmp_path / "served", "--table", table)
    (node,) = serving.found
    run("mkfs.ext4", "-q", node)
    with mounted(node, tmp_path / "live") as folder:
        (folder / "kept").write_text("kept")
        run("sync", "-f", folder)
        (folder / "lost").write_bytes(bytes(1 << 20))
        serving.process.kill()
        serving.process.communicate(timeout=60)
        run("sync", "-f", folder, code=1)
    run(sys.executable, "-m", "dmcopy", "dm", "reap")
    assert not (tmp_path / "served").exists()
    assert not Path("/sys/block", Path(node).name, "loop").exists()
    with mounted(str(disk), tmp_path / "live") as folder:
        assert (folder / "kept").read_text() == "kept"
