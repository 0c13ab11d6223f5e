"""What a device or file is known by: the same again is known, another is not taken for it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dmcopy.block import BlockDevice, syscalls
from dmcopy.block.sysfs import Roots
from dmcopy.io.simulated import SimulatedDisk
from dmcopy.transfer.identity import Identity, identify, of_block

REALTIME_COARSE = 5  # clock_gettime(2); Python has no name for it


class Machine:
    """Block devices in a made-up /sys; `boots` gives each a new number, as another boot may."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sys = top / "sys"
        self.roots = Roots(self.sys, top / "dev")
        self.top = top
        self.patch = monkeypatch
        self.boot(1)

    def boot(self, number: int) -> None:
        self.patch.setattr("dmcopy.transfer.identity.boot_id", lambda: f"boot{number}")

    def put(self, name: str, *, disk: str = "", **files: str) -> Identity:
        """Let a device appear, in the place of one of that name; `__` in an attribute is a /."""
        folder = self.sys / "devices" / disk / name
        for attribute, text in files.items():
            file = folder / attribute.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")
        for link in (f"class/block/{name}", "dev/block/8:1"):
            path = self.sys / link
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.symlink_to(folder)
        return of_block((8, 1), self.roots)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.chdir(tmp_path)
    return Machine(tmp_path, monkeypatch)


LASTING = {
    "SCSI": {"device__wwid": "naa.5000"},
    "NVMe": {"wwid": "eui.0025", "device__serial": "S1"},
    "card": {"device__cid": "2750", "device__serial": "0x1"},
    "LVM": {"dm__uuid": "LVM-abc"},
    "multipath": {"dm__uuid": "part1-mpath-36"},
    "md": {"md__uuid": "1:2"},
}


@pytest.mark.parametrize("files", LASTING.values(), ids=LASTING)
def test_a_disk_is_known_after_a_boot_under_another_name(
    machine: Machine, files: dict[str, str]
) -> None:
    before = machine.put("sda", diskseq="7", **files)
    machine.boot(2)
    after = machine.put("sdb", diskseq="9", **files)
    assert before.is_of(after)
    other = {key: f"{value}x" for key, value in files.items()}
    assert not before.is_of(machine.put("sda", diskseq="7", **other))
    assert not before.doubt_about(after)


DOUBTFUL = {
    "virtio with a serial": ({"serial": "dup"}, "serial number, dup, which others may have"),
    "virtio without": ({}, "no number that it is known by"),
    "mapped": ({"dm__uuid": "mine"}, "may be made of anything"),
    "mapped without a UUID": ({"dm__uuid": "", "wwid": "5"}, "may be made of anything"),
    "card reader": ({"removable": "1", "device__wwid": "naa.5"}, "medium can be changed"),
}


@pytest.mark.parametrize(("files", "says"), DOUBTFUL.values(), ids=DOUBTFUL)
def test_what_another_may_look_like_is_known_until_the_next_boot(
    machine: Machine, files: dict[str, str], says: str
) -> None:
    before = machine.put("vda", diskseq="7", **files)
    assert before.is_of(machine.put("vda", diskseq="7", **files))
    assert not before.is_of(machine.put("vda", diskseq="8", **files)), "it was pulled out"
    machine.boot(2)
    after = machine.put("vda", diskseq="7", **files)
    assert not before.is_of(after)
    assert says in before.doubt_about(after)


def test_without_the_kernels_count_there_is_doubt(machine: Machine) -> None:
    """Before Linux 5.15, or in a container that shows less."""
    assert not machine.put("vda", serial="dup").is_of(machine.put("vda", serial="dup"))


def test_where_a_partition_begins_tells_nothing_without_its_disk(machine: Machine) -> None:
    """Most first partitions begin at 2048: a copy would continue on another disk's."""
    first, other = (
        machine.put(f"{disk}1", disk=disk, partition="1", start="2048")
        for disk in ("sda", "sdb")
        if machine.put(disk)
    )
    assert not first.is_of(other)


def test_what_is_no_file_is_known_by_its_name() -> None:
    disks = [SimulatedDisk(8, "/nowhere/one"), SimulatedDisk(8, "/nowhere/other")]
    assert identify(disks[0]).is_of(identify(SimulatedDisk(8, "/nowhere/one")))
    assert not identify(disks[0]).is_of(identify(disks[1]))


@pytest.mark.parametrize("name", ["nbd0", "zram0"])
def test_what_is_made_anew_under_one_number_is_never_known(machine: Machine, name: str) -> None:
    assert not machine.put(name, diskseq="7").is_of(machine.put(name, diskseq="7"))


def test_a_partition_is_its_disk_and_where_it_begins(machine: Machine) -> None:
    machine.put("sda", diskseq="7", wwid="naa.5")

    def partition(name: str, start: str) -> Identity:
        return machine.put(name, disk="sda", partition="1", start=start)

    first = partition("sda1", "2048")
    assert first.is_of(partition("sda2", "2048")), "the partition table was sorted"
    assert not first.is_of(partition("sda1", "4096"))
    assert not first.is_of(machine.put("sda"))


def loop(machine: Machine, sequence: str, offset: str = "0", file: str = "file") -> Identity:
    backing = str(machine.top / file)
    return machine.put("loop0", diskseq=sequence, loop__backing_file=backing, loop__offset=offset)


def test_a_loop_device_is_its_file_and_where_it_begins(machine: Machine) -> None:
    Path("file").touch()
    before = loop(machine, "7")
    assert before.is_of(loop(machine, "8")), "it was set up again"
    assert not before.is_of(loop(machine, "8", offset="512"))
    os.unlink("file")
    Path("file").touch()
    assert not before.is_of(loop(machine, "8"))
    assert not before.doubt_about(loop(machine, "8"))


def test_a_loop_device_whose_file_is_gone_is_known_while_it_stays(machine: Machine) -> None:
    before = loop(machine, "7", file="gone")
    assert before.is_of(loop(machine, "7", file="gone"))
    after = loop(machine, "8", file="gone")
    assert not before.is_of(after)
    assert "is not to be seen" in before.doubt_about(after)


def identity(path: str) -> Identity:
    with BlockDevice.open(path) as device:
        return identify(device)


def tick() -> None:
    """Wait until the clock that files get their times from has advanced: some milliseconds."""
    before = time.clock_gettime_ns(REALTIME_COARSE)
    while time.clock_gettime_ns(REALTIME_COARSE) == before:
        time.sleep(0.001)


class TestFiles:
    """Regular files; every file system that tests run on notes when a file was made."""

    @pytest.fixture(autouse=True)
    def file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("file").write_bytes(bytes(512))

    def test_one_is_known_when_it_was_written_to_or_renamed(self) -> None:
        before = identity("file")
        Path("file").write_bytes(b"x" * 512)
        assert before.is_of(identity("file"))
        os.rename("file", "other")
        assert before.is_of(identity("other"))

    def test_one_is_known_after_a_boot(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = identity("file")
        monkeypatch.setattr("dmcopy.transfer.identity.boot_id", lambda: "another")
        assert before.is_of(identity("file"))

    def test_one_that_was_made_again_is_another(self) -> None:
        """Even where it has the inode of the old one: ext4 and tmpfs give it away immediately."""
        before = identity("file")
        for _ in range(20):
            os.unlink("file")
            tick()
            Path("file").write_bytes(bytes(512))
            assert not before.is_of(identity("file"))
        assert not before.doubt_about(identity("file"))

    def test_without_the_boots_name_nothing_is_known_by_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("dmcopy.transfer.identity.boot_id", lambda: "")
        assert identity("file").boot == ""
        assert identity("file").always

    def test_without_a_time_there_is_doubt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(syscalls, "birth_time", lambda _: None)
        before = identity("file")
        assert not before.is_of(identity("file"))
        assert "does not say when a file was made" in before.doubt_about(identity("file"))
