"""A program of a user, run once on a disk that is a file, and every power cut that it may meet."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from dmcopy.block import file_mounts
from dmcopy.testing.explorer import CrashError, Explored
from dmcopy.testing.storage import Storage

PROGRAM = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for number in range(1, 4):
    os.pwrite(fd, bytes([number]) * 4096, 4096 * number)
    if sys.argv[2] == "careful":
        os.fsync(fd)
    os.pwrite(fd, bytes([number]) * 512, 0)
    os.fsync(fd)
"""
Explore = Callable[..., Explored]


def program(manner: str) -> Callable[[Storage], object]:
    def run(storage: Storage) -> None:
        subprocess.run([sys.executable, "-c", PROGRAM, storage.disk, manner], check=True)
        storage.mark("ended")

    return run


def check(storage: Storage) -> None:
    with open(storage.disk, "rb") as file:
        content = file.read()
    number = content[0]
    assert number == 3 or "ended" not in storage.marks
    data = content[4096 * number :][:4096]
    assert not number or data == bytes([number]) * 4096, f"{number} is named and not there"


@pytest.fixture(params=["fuse", "loop"])
def via(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    if why := file_mounts.why_not():
        pytest.skip(why)
    if kind == "loop" and not os.path.exists("/dev/loop-control"):
        pytest.skip("this kernel has no loop devices (modprobe loop)")
    return kind


def test_a_program_that_forgets_an_fsync_is_caught(crash_explorer: Explore, via: str) -> None:
    disks = {"disk": 64}
    assert crash_explorer(program("careful"), check, disks, via=via).states > 15
    with pytest.raises(CrashError, match="is named and not there") as found:
        crash_explorer(program("hasty"), check, disks, via=via)
    assert "of disk: " in str(found.value), "on a loop device it may be one write that is torn"
