"""Snapshots and mirrors of file systems that are mounted, on a machine without device-mapper."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from dmcopy.workflows.journal import Journal, user_folder
from dmcopy.workflows.session import Session
from dmcopy.workflows.snapshot import Growth, plan_merge
from dmcopy.workflows.snapshot_watch import Threshold, watch
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
        # Else its tables are written later, which a snapshot has to copy out, too.
        here.run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", self.node)
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


def test_a_snapshot_is_watched_while_the_file_system_is_filled(here: Here) -> None:
    """Far more is written than there was room for: it is made longer, and a command is run."""
    data = Mounted(here)
    cow, said = here.image("cow.img", 2 * MIB), here.folder / "said"
    here.dmcopy("snapshot", "take", "snap", "data", cow, "--chunk-size", "8")
    before = data.content
    act = Threshold(50, ("sh", "-c", f"echo $DMCOPY_SNAPSHOT >{said}"), Growth(8 * MIB >> 9, True))
    session = Session(here.mapper, Journal(user_folder()))
    events, written = [], 0
    for level in watch(session, "snap", interval=0.05, threshold=act):
        if level.event != "level":
            events.append(level.event)
        elif written == 3 * MIB:
            break
        else:  # less than what the threshold leaves free
            with open(data.point / "more", "ab") as file:
                written += file.write(bytes(MIB // 8))
                os.fsync(file.fileno())
    assert events == ["threshold", "extended", "command"]
    assert said.read_text() == "snap\n"
    assert cow.stat().st_size == 10 * MIB
    then = here.mounted(here.mapper.path("snap"))
    assert (then / "noise").read_bytes() == before
    assert not (then / "more").exists()
    here.run("umount", then)
    here.dmcopy("snapshot", "drop", "snap")
    data.umount()
    here.dm("remove", "data")


def test_a_file_system_is_mounted_while_a_snapshot_is_merged_into_it(here: Here) -> None:
    data = Mounted(here)
    here.dmcopy("snapshot", "take", "snap", "data", here.image("cow.img", SIZE))
    before = data.content
    data.write()
    assert "unmount it; as soon as" in here.dmcopy("snapshot", "merge", "snap", code=6)
    data.umount()
    session = Session(here.mapper, Journal(user_folder()))
    session.run(plan_merge(here.mapper, "snap"), wait=False)
    data.mount()
    assert data.holds(before)
    (data.point / "new").write_bytes(before)
    os.sync()
    here.dmcopy("snapshot", "finish", "snap", "--progress", "none")
    assert data.holds(before)
    assert (data.point / "new").read_bytes() == before
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
