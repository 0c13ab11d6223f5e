"""A loop device is found by what it is made of, whatever its file is called by now, and by whom."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from dmcopy.block import BlockDevice, backing, holders
from dmcopy.block.loop import attach, detach, loop_device
from dmcopy.block.processes import identity_at
from dmcopy.errors import BusyError

pytestmark = pytest.mark.loop


def loops_of(path: Path) -> list[str]:
    return [holder.name for holder in holders.who(str(path)) if holder.kind == "loop"]


def refused(path: Path, loop: str) -> None:
    with pytest.raises(BusyError, match=loop):
        BlockDevice.open(path, write=True)


def test_another_name_of_a_file_that_is_deleted(loops: Any) -> None:
    (loop,) = loops(64)
    file, link = Path(loop.backing), loops.folder / "link"
    link.hardlink_to(file)
    file.unlink()
    refused(link, loop.path)
    file.write_bytes(bytes(4096))  # its name, but not what is below
    assert loops_of(file) == []
    with BlockDevice.open(file, write=True):
        pass


@pytest.mark.parametrize("name", ["blank ", "line\n", "a (deleted)", "Müsli", os.fsdecode(b"\xe9")])
def test_odd_names(loops: Any, name: str) -> None:
    file = loops.folder / name
    file.write_bytes(bytes(4096))
    with loop_device(file) as loop:
        refused(file, loop.path)
        (found,) = backing.loops_over(identity_at(file))
        assert (found.loop, found.path) == (loop.name, os.path.realpath(file))
    assert loops_of(file) == []


def test_made_in_another_mount_namespace(loops: Any) -> None:
    """The path that the kernel shows is one of there."""
    file, there = loops.folder / "file", loops.folder / "there"
    file.write_bytes(bytes(4096))
    there.mkdir()
    script = 'mount --bind "$0" "$0/there" && losetup --find --show "$0/there/file"'
    words = ["unshare", "--mount", "sh", "-ec", script, str(loops.folder)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    node = done.stdout.strip()
    try:
        refused(file, node)
    finally:
        subprocess.run(["losetup", "--detach", node], check=True, timeout=60)


def test_a_loop_device_of_a_loop_device_and_a_part_of_it(loops: Any) -> None:
    (lower,) = loops(64)
    with loop_device(lower.path, offset=16, size=8) as upper:
        found = backing.of(upper.name)
        assert found is not None
        assert found.identity == identity_at(lower.path)
        assert (found.offset, found.limit) == (16 * 512, 8 * 512)
        assert [found.overlaps(*span) for span in ((0, 8192), (0, 8193), (12287, 1))] == [
            *(False, True, True)
        ]
        assert not found.overlaps(12288, 512)
        refused(Path(lower.path), upper.path)
    assert backing.of(upper.name) is None
    assert backing.of("sda") is None


def test_the_same_file_twice(loops: Any) -> None:
    file = loops.folder / "file"
    file.write_bytes(bytes(4096))
    with ExitStack() as stack:
        made = [attach(file) for _ in range(2)]
        for loop in made:
            stack.callback(detach, loop)
        assert sorted(loops_of(file)) == sorted(loop.path for loop in made)


def test_another_loop_device_of_the_same_file_is_mounted(loops: Any, tmp_path: Path) -> None:
    (one,) = loops(4096)
    with loop_device(one.backing, offset=1024) as other, loop_device(one.backing, size=1) as apart:
        subprocess.run(["mkfs.ext2", "-q", other.path], check=True, timeout=60)
        subprocess.run(["mount", other.path, tmp_path], check=True, timeout=60)
        try:
            refused(Path(one.path), f"mounted on {tmp_path} .on {other.name}, the same storage")
            with BlockDevice.open(apart.path, write=True):
                pass
        finally:
            subprocess.run(["umount", tmp_path], check=True, timeout=60)
        with BlockDevice.open(one.path, write=True):
            pass
