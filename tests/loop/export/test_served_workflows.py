"""Snapshots and mirrors of file systems that are mounted, on a machine without device-mapper."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from tests.loop.export.here import MIB, Here

pytestmark = pytest.mark.loop
SIZE = 32 * MIB


class Mounted:
    """ext4 on the device `data`, with a file of noise, mounted."""

    def __init__(self, here: Here) -> None:
        self._rng = random.Random(5)
        self._here = here
        self.image = here.image("disk.img", SIZE)
        here.dm("create", "data", "--table", f"0 {SIZE >> 9} linear {self.image} 0")
        self.node = here.mapper.path("data")
        here.run("mkfs.ext4", "-q", self.node)
        self.point = here.mounted(self.node)
        self.content = b""
        self.write()

    def write(self) -> None:
        """Write other noise over the file."""
        self.content = self._rng.randbytes(3 * MIB)
        (self.point / "noise").write_bytes(self.content)
        os.sync()

    def holds(self, content: bytes) -> bool:
        """Whether that is in the file, read from the device."""
        Path("/proc/sys/vm/drop_caches").write_text("1")
        return (self.point / "noise").read_bytes() == content

    def mount(self) -> None:
        self._here.mounted(self.node)

    def umount(self) -> None:
        self._here.run("umount", self.point)


def test_a_snapshot_of_a_mounted_file_system(here: Here) -> None:
    data = Mounted(here)
    cow = here.image("cow.img", 2 * MIB)
    here.dmcopy("snapshot", "take", "snap", "data", cow)
    before = data.content
    assert "overflows" not in here.dmcopy("snapshot", "extend", "snap", "32M")
    assert cow.stat().st_size == 32 * MIB
    data.write()
    (state,) = json.loads(here.dmcopy("snapshot", "status", "--json"))
    assert (state["state"], state["origin"]) == ("active", "data")
    assert state["percent"] > 5
    here.run("e2fsck", "-fn", here.mapper.path("snap"))  # it was frozen when it was taken
    then = here.mounted(here.mapper.path("snap"))
    assert (then / "noise").read_bytes() == before
    told = here.dmcopy("snapshot", "drop", "snap", code=6)
    assert str(then) in told
    here.run("umount", then)
    data.umount()
    here.dmcopy("snapshot", "merge", "snap", "--progress", "none")
    data.mount()
    assert data.holds(before)
    here.dmcopy("snapshot", "take", "snap", here.mapper.path("data"), cow)
    data.write()
    here.dmcopy("snapshot", "drop", "snap")
    assert data.holds(data.content)
    assert str(here.mapper.table("data")) == f"0 {SIZE >> 9} linear {data.image} 0"
    data.umount()
    here.run("e2fsck", "-fn", data.node)
    here.dm("remove", "data")


def test_a_mirror_of_a_mounted_file_system(here: Here) -> None:
    data = Mounted(here)
    leg, other, log = (here.image(name, SIZE) for name in ("leg.img", "other.img", "log.img"))
    quietly = ("--progress", "none")
    here.dmcopy("mirror", "make", "data", "--from", "data", "--leg", leg, "--log", log, *quietly)
    data.write()
    here.dmcopy("mirror", "fail", "data", "1")
    told = here.dmcopy("mirror", "replace", "data", "1", other, *quietly)
    assert f"leg 1  {other}  alive" in told
    data.write()
    here.dmcopy("mirror", "wait", "data", *quietly)
    copied = data.content
    here.dmcopy("mirror", "split", "data", "1", "copy", *quietly)
    data.write()
    here.run("e2fsck", "-fn", here.mapper.path("copy"))
    then = here.mounted(here.mapper.path("copy"))
    assert (then / "noise").read_bytes() == copied
    here.run("umount", then)
    here.dmcopy("mirror", "move", "data", data.image, leg, "--force", *quietly)
    assert str(here.mapper.table("data")) == f"0 {SIZE >> 9} linear {leg} 0"
    assert [info.name for info in here.mapper.ls()] == ["copy", "data"]
    data.image.unlink()
    assert data.holds(data.content)
    data.umount()
    here.run("e2fsck", "-fn", data.node)
    here.dm("remove", "data", "copy")
