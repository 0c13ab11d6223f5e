"""Devices described from sysfs and links, and found by all their names."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest

from dmcopy.block import content
from dmcopy.block.content import Content
from dmcopy.block.discovery import appearance, find, list_devices
from dmcopy.errors import UsageError
from dmcopy.ondisk.bitset import Bitset
from dmcopy.ondisk.mirror_log import MirrorLog

_UUID = "0a1b2c3d-0000-4000-8000-000000000001"


@pytest.fixture
def disks(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A SATA disk with a partition, a virtio disk, a dm device on both, a free loop device."""
    kernel.add(
        "sda",
        "8:0",
        sectors=4096,
        queue__logical_block_size="512",
        queue__physical_block_size="4096",
        queue__rotational="1",
        device__vendor="ATA     ",
        device__model="SPINNER 9000    ",
    )
    page = kernel.roots.sys / "devices/sda/device/vpd_pg80"
    page.write_bytes(b"\x00\x80\x00\x0a  WD-12345 trailing")
    kernel.add("sda1", "8:1", sectors=1024, disk="sda")
    kernel.add("sda10", "8:10", sectors=8, disk="sda")
    kernel.add("sda2", "8:2", sectors=8, disk="sda")
    kernel.add("vda", "254:0", serial="scratch0", ro="1", device__vendor="0x1af4")
    kernel.add("dm-0", "253:0", dm__name="vg-lv", dm__uuid="LVM-abc")
    kernel.stack("dm-0", "sda1")
    kernel.add("loop7", "7:7", sectors=0)
    kernel.link(f"disk/by-uuid/{_UUID}", "sda1")
    kernel.link(r"disk/by-label/my\x20data", "sda1")
    kernel.link("disk/by-id/ata-SPINNER", "sda")
    kernel.link("disk/by-partuuid/0b8a-01", "sda2")
    kernel.link(r"disk/by-partlabel/EFI\x20system", "sda2")
    kernel.link(r"disk/by-label/M\xc3\xbcsli", "sda10")
    kernel.put("proc/self/mountinfo", "40 27 8:1 / /data rw - ext4 /dev/sda1 rw\n")
    known = {str(kernel.roots.dev / "vda"): Content("feed-f00d", "boot", "vfat")}
    monkeypatch.setattr(content, "probe", lambda node: known.get(node, Content()))
    return kernel


def test_a_disk(disks: Any) -> None:
    disk = find("sda", roots=disks.roots)
    assert (disk.name, disk.devno, disk.type, disk.sectors) == ("sda", (8, 0), "disk", 4096)
    assert (disk.logical_block_size, disk.physical_block_size) == (512, 4096)
    assert (disk.model, disk.serial) == ("ATA SPINNER 9000", "WD-12345")
    assert disk.rotational
    assert not disk.read_only
    assert disk.links == (str(disks.roots.dev / "disk/by-id/ata-SPINNER"),)
    assert disk.partitions == ("sda1", "sda10", "sda2")


def test_a_partition_has_its_disks_blocks_and_its_own_names(disks: Any) -> None:
    part = find("sda1", roots=disks.roots)
    assert (part.type, part.parent, part.physical_block_size) == ("part", "sda", 4096)
    assert (part.uuid, part.label, part.mounts) == (_UUID, "my data", ("/data",))
    assert (part.holders, part.serial) == (("dm-0",), "")


def test_what_no_link_tells_is_read_from_the_device(disks: Any) -> None:
    disk = find("vda", roots=disks.roots)
    assert (disk.uuid, disk.label, disk.fstype) == ("feed-f00d", "boot", "vfat")
    assert (disk.serial, disk.model, disk.read_only) == ("scratch0", "", True)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("8:1", "sda1"),
        ("scratch0", "vda"),
        ("SERIAL=WD-12345", "sda"),
        (_UUID, "sda1"),
        (f"UUID={_UUID}", "sda1"),
        ("LABEL=my data", "sda1"),
        ("label=my data", "sda1"),
        ("LABEL=Müsli", "sda10"),
        ("uuid=FEED-F00D", "vda"),
        ("PARTUUID=0b8a-01", "sda2"),
        ("PARTUUID=0B8A-01", "sda2"),
        ("partlabel=EFI system", "sda2"),
        ("ID=ata-SPINNER", "sda"),
        ("EFI system", "sda2"),
        ("feed-f00d", "vda"),
        ("vg-lv", "dm-0"),
        ("DM=vg-lv", "dm-0"),
        ("{dev}/mapper/vg-lv", "dm-0"),
        ("{dev}/disk/by-uuid/feed-f00d", "vda"),
        ("{dev}/disk/by-label/boot", "vda"),
    ],
)
def test_names(disks: Any, spec: str, name: str) -> None:
    assert find(spec.format(dev=disks.roots.dev), roots=disks.roots).name == name


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sdq", "did you mean 'sda'"),
        ("zzzzzz", "'dmcopy devices' lists them"),
        ("{dev}/sdb", "did you mean '.*/sda'"),
        ("{dev}/vda", "is not a block device"),  # in this made-up /dev it is a file
        ("9" * 5000 + ":0", "no block device has this name"),
        ("9:9", "no block device has this name"),
        ("SERIAL=vg-lv", "no block device has this name"),
        ("LABEL=my Data", "no block device has this name"),
        ("SERIAL=", "no block device has this name"),
        ("LABEL=EFI system", "no block device has this name"),
        ("dm=", "no block device has this name"),
    ],
)
def test_names_of_nothing(disks: Any, spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find(spec.format(dev=disks.roots.dev), roots=disks.roots)


def test_a_name_of_two_is_refused(disks: Any) -> None:
    disks.add("vdb", "254:16", serial="scratch0")
    with pytest.raises(UsageError, match=r"several devices: give one of .*/vda, .*/vdb"):
        find("scratch0", roots=disks.roots)


def test_the_list_is_in_natural_order(disks: Any) -> None:
    names = [device.name for device in list_devices(roots=disks.roots)]
    assert names == ["dm-0", "sda", "sda1", "sda2", "sda10", "vda"]
    assert "loop7" in [device.name for device in list_devices(empty=True, roots=disks.roots)]


def test_what_is_to_be_recognised(disks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = disks.roots.dev
    monkeypatch.setattr("dmcopy.block.discovery._direct_name", lambda spec, _: Path(spec).name)
    monkeypatch.setattr(content, "describe", lambda path: "ext4 'my data'" if "sda" in path else "")
    disks.add("loop1", "7:1", loop__backing_file="/images/a")
    for name, phrase in {
        "sda1": "ext4 'my data' on ATA SPINNER 9000, serial WD-12345",
        "vda": "serial scratch0",
        "dm-0": "mapped device vg-lv",
        "loop1": "made of /images/a",
    }.items():
        assert appearance(str(nodes / name), roots=disks.roots) == phrase


def test_of_a_file_only_what_is_on_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(swap_area("old"))
    assert appearance(str(file)) == "swap 'old'"
    file.write_bytes(b"text")
    assert appearance(str(file)) == ""
    assert appearance(str(tmp_path / "none")) == ""


def test_udevs_escapes() -> None:
    assert content.unescape(r"caf\xc3\xa9\x20x") == "café x"
    assert content.unescape(r"Latin-1 \xe9") == os.fsdecode(b"Latin-1 \xe9")


def test_udevs_properties_are_taken_exactly() -> None:
    told = {"ID_FS_LABEL": "my_data", "ID_FS_LABEL_ENC": r"my\x20data", "ID_FS_TYPE": "ext4"}
    assert content.from_udev(told) == Content("", "my data", "ext4")


def test_what_is_on_a_device_in_a_phrase(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    assert content.describe(str(disk)) == ""
    assert content.describe(str(tmp_path / "none")) == ""
    disk.write_bytes(b"SnAp" + bytes(1 << 20))
    assert content.describe(str(disk)) == "the store of an earlier snapshot"
    disk.write_bytes(MirrorLog(Bitset(64)).build())
    assert content.describe(str(disk)) == "the log of a mirror"
    disk.write_bytes(swap_area("Müsli"))
    assert content.describe(str(disk)) == "swap 'Müsli'"
    disk.write_bytes(partition_table())
    assert content.describe(str(disk)) == "a partition table (dos)"


def swap_area(label: str) -> bytes:
    """Build the first pages of what mkswap makes: version, last page, UUID and label."""
    head = struct.pack("=III16s16s", 1, 255, 0, bytes(range(16)), label.encode())
    return (bytes(1024) + head).ljust(4086, b"\0") + b"SWAPSPACE2" + bytes(255 * 4096)


def partition_table() -> bytes:
    entry = struct.pack("<B3sB3sII", 0, bytes(3), 0x83, bytes(3), 2048, 1024)
    return bytes(446) + entry.ljust(64, b"\0") + b"\x55\xaa" + bytes(2 << 20)
