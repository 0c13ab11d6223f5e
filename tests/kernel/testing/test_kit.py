"""The fixtures on a real kernel: the same that tests/unit/testing/kit looks at on the model."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dmcopy.errors import DeviceError
from dmcopy.testing.kit import Kit
from tests.kernel.programs import run

pytestmark = pytest.mark.kernel(either=True, cost=3)
PAGE = 4096


def test_a_snapshot_a_mirror_and_a_stack(dm: Kit) -> None:
    disk = dm.scratch_disk("8M")
    snapshot = dm.snapshot(disk, dm.scratch_disk("4M"))
    subprocess.run(
        ["dd", "if=/dev/urandom", f"of={snapshot.origin.path}", "bs=4096", "count=1", "conv=fsync"],
        check=True,
        capture_output=True,
        timeout=120,
    )
    with snapshot.open() as snap, snapshot.origin.open() as origin:
        assert snap.read(0, 8) == bytes(PAGE) != origin.read(0, 8)
    assert not snapshot.status().empty
    mirror = dm.mirror(dm.linear(disk, start=8192, length=1024), dm.scratch_disk("1M"))
    mirror.wait_in_sync(60)
    made = dm.stack({"low": f"0 64 linear {disk} 9216", "top": "0 64 striped 1 16 {low} 0"})
    with made["top"].paused():
        assert made["top"].info.suspended


def test_faults_on_blocks_of_4096(dm: Kit) -> None:
    faulty = dm.faulty(dm.scratch_disk("8M", block_size=4096))
    faulty.error("8:8")
    faulty.corrupt("32:8", byte=3, value=7)
    with faulty.open() as io:
        assert io.logical_block_size == 4096
        with pytest.raises(DeviceError):
            io.read(8, 8)
        io.write(32, b"x" * PAGE)
        faulty.restore()
        assert io.read(32, 8) == b"xxx\7" + b"x" * (PAGE - 4)
        assert io.read(8, 8) == bytes(PAGE)


def test_a_file_system_on_a_device(dm: Kit, tmp_path: Path) -> None:
    device = dm.linear(dm.scratch_disk("16M"))
    run("mkfs.ext4", "-q", device)
    run("mount", device, tmp_path)
    run("umount", tmp_path)
