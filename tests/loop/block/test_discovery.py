"""Finding real devices, with whatever udev there is or is not."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dmcopy.block.discovery import find, list_devices
from dmcopy.block.holders import who

pytestmark = pytest.mark.loop

_UUID = "5d6c0c9e-8a2f-4f0e-9c56-0123456789ab"


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


def test_a_file_system_is_found_by_its_uuid_and_label(loops: Any, tmp_path: Path) -> None:
    (loop,) = loops(8192)
    _run("mkfs.ext4", "-q", "-F", "-U", _UUID, "-L", "dm copy", loop.path)
    (tmp_path / "link").symlink_to(loop.path)
    number = os.stat(loop.path).st_rdev
    for spec in (
        loop.path,
        loop.name,
        str(tmp_path / "link"),
        f"{os.major(number)}:{os.minor(number)}",
        _UUID,
        f"/dev/disk/by-uuid/{_UUID}",
        "LABEL=dm copy",
    ):
        found = find(spec)
        assert (found.node, found.uuid, found.label) == (loop.path, _UUID, "dm copy"), spec
    assert (found.fstype, found.type, found.sectors) == ("ext4", "loop", 8192)
    assert found.backing_file == loop.backing


def test_the_list_knows_blocks_and_mounts(loops: Any, tmp_path: Path) -> None:
    mounted, large = loops(8192), loops(64, sector_size=4096, read_only=True)
    _run("mkfs.ext4", "-q", "-F", mounted[0].path)
    _run("mount", mounted[0].path, str(tmp_path))
    try:
        devices = {device.node: device for device in list_devices()}
    finally:
        _run("umount", str(tmp_path))
    assert devices[mounted[0].path].mounts == (str(tmp_path),)
    assert devices[large[0].path].logical_block_size == 4096
    assert devices[large[0].path].read_only


def test_who_sees_processes_and_loops(loops: Any) -> None:
    (loop,) = loops(64)
    with open(loop.path, "rb") as opened:
        sleeper = subprocess.Popen(["sleep", "60"], stdin=opened)
    try:
        (user,) = [user for user in who(loop.path) if user.pid == sleeper.pid]
        assert str(user) == f"process {sleeper.pid} (sleep)"
        assert [str(user) for user in who(loop.backing)] == [f"loop device {loop.path}"]
    finally:
        sleeper.kill()
        sleeper.wait(30)
