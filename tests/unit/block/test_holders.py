"""Each way in which a device is kept busy, and its phrase."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from dmcopy.block import processes
from dmcopy.block.holders import Holder, device_users, loop_users, who
from dmcopy.errors import DeviceError, UsageError


def _phrases(kernel: Any, name: str) -> list[str]:
    return [str(user) for user in device_users(name, roots=kernel.roots)]


def _mount(kernel: Any, devno: str, point: str, source: str = "/dev/x", pid: str = "self") -> None:
    kernel.put(f"proc/{pid}/mountinfo", f"40 27 {devno} / {point} rw - ext4 {source} rw\n")


def test_nobody(kernel: Any) -> None:
    kernel.add("sda", "8:0")
    assert _phrases(kernel, "sda") == []


def test_a_mount(kernel: Any) -> None:
    kernel.add("sda", "8:0")
    _mount(kernel, "8:0", r"/mnt/my\040disk")
    assert _phrases(kernel, "sda") == ["the file system mounted on /mnt/my disk"]


def test_a_mount_of_a_partition(kernel: Any) -> None:
    kernel.add("sda", "8:0")
    kernel.add("sda1", "8:1", disk="sda")
    _mount(kernel, "8:1", "/boot")
    assert _phrases(kernel, "sda") == ["the file system mounted on /boot (partition sda1)"]
    assert _phrases(kernel, "sda1") == ["the file system mounted on /boot"]


def test_a_mount_in_a_container(kernel: Any) -> None:
    kernel.add("sda", "8:0")
    (kernel.roots.proc / "self/ns").mkdir()
    (kernel.roots.proc / "self/ns/mnt").symlink_to("mnt:[1]")
    kernel.process(77, "same-namespace")
    kernel.process(78, "containerd-shim", namespace="mnt:[2]")
    _mount(kernel, "8:0", "/data", pid="78")
    assert _phrases(kernel, "sda") == [
        "the file system mounted on /data (in the mount namespace of process 78 (containerd-shim))"
    ]


def test_the_second_disk_of_a_btrfs(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.add("sda", "8:0")
    kernel.add("sdb", "8:16")
    for name in ("sda", "sdb"):
        kernel.put(f"sys/fs/btrfs/1234/devices/{name}", "")
    _mount(kernel, "0:44", "/home", source="/dev/sda")
    monkeypatch.setattr("dmcopy.block.holders._number_at", {"/dev/sda": (8, 0)}.get)
    assert _phrases(kernel, "sdb") == ["the file system mounted on /home"]


def test_dm_and_md_on_top(kernel: Any) -> None:
    kernel.add("sda", "8:0")
    kernel.add("sda1", "8:1", disk="sda")
    kernel.add("dm-3", "253:3", dm__name="vg-lv")
    kernel.add("md0", "9:0", md__level="raid1")
    kernel.add("bcache0", "252:0")
    kernel.stack("dm-3", "sda1")
    kernel.stack("md0", "sda")
    kernel.stack("bcache0", "sda")
    assert _phrases(kernel, "sda") == [
        "stacked device bcache0",
        "md device md0",
        "dm device vg-lv (dm-3, partition sda1)",
    ]
    assert _phrases(kernel, "sda1") == [
        "dm device vg-lv (dm-3)",
        "stacked device bcache0 (whole disk sda)",
        "md device md0 (whole disk sda)",
    ]


def test_swap(kernel: Any) -> None:
    kernel.add("sda", "8:0")
    kernel.put("proc/swaps", f"Filename Type\n{kernel.roots.dev}/sda partition 1 0 -2\n")
    assert _phrases(kernel, "sda") == ["swap"]


def test_a_loop_device_made_of_it(kernel: Any) -> None:
    kernel.add("sda", "8:0")
    kernel.add("loop0", "7:0", loop__backing_file=f"{kernel.roots.dev}/sda")
    kernel.add("loop1", "7:1", loop__backing_file="/other/file (deleted)")
    assert _phrases(kernel, "sda") == [f"loop device {kernel.roots.dev}/loop0"]


def test_of_all_users_only_the_loop_devices(kernel: Any) -> None:
    kernel.add("sda", "8:0")
    kernel.add("sda1", "8:1", disk="sda")
    kernel.add("loop0", "7:0", loop__backing_file=f"{kernel.roots.dev}/sda1")
    _mount(kernel, "8:0", "/mnt")
    loop = f"loop device {kernel.roots.dev}/loop0"
    assert list(map(str, loop_users("sda", roots=kernel.roots))) == [f"{loop} (partition sda1)"]
    assert list(map(str, loop_users("sda1", roots=kernel.roots))) == [loop]
    assert loop_users("", roots=kernel.roots) == []  # a node that no driver is behind


def test_loop_devices_of_the_disk_of_a_partition(kernel: Any) -> None:
    kernel.add("sda", "8:0", sectors=10000)
    kernel.add("sda1", "8:1", disk="sda", start="2048", sectors=100)
    places = {"whole": (0, 0), "before": (0, 2048), "in": (2147, 1), "behind": (2148, 0)}
    for number, (offset, size) in enumerate(places.values()):
        loop = {"backing_file": f"{kernel.roots.dev}/sda"}
        loop |= {"offset": str(offset * 512), "sizelimit": str(size * 512)}
        files = {f"loop__{name}": text for name, text in loop.items()}
        kernel.add(f"loop{number}", f"7:{number}", **files)
    loops = [f"loop device {kernel.roots.dev}/loop{number} (whole disk sda)" for number in (0, 2)]
    assert list(map(str, loop_users("sda1", roots=kernel.roots))) == loops
    assert _phrases(kernel, "sda1") == loops
    assert len(loop_users("sda", roots=kernel.roots)) == len(places)


def test_who_uses_what_a_loop_device_is_made_of(kernel: Any, tmp_path: Path) -> None:
    """No process claims that: two loop devices of one file know nothing of each other."""
    file = tmp_path / "file"
    file.touch()
    for number, (offset, size) in enumerate([(0, 100), (50, 100), (100, 100)]):
        place = {"loop__offset": str(offset * 512), "loop__sizelimit": str(size * 512)}
        kernel.add(f"loop{number}", f"7:{number}", 100, loop__backing_file=str(file), **place)
    _mount(kernel, "7:1", "/mnt")
    mounted = ["the file system mounted on /mnt (on loop1, the same storage)"]
    assert list(map(str, loop_users("loop0", roots=kernel.roots))) == mounted
    assert _phrases(kernel, "loop2") == mounted
    _mount(kernel, "7:2", "/mnt")
    assert loop_users("loop0", roots=kernel.roots) == []


def test_who_uses_the_disk_that_a_loop_device_is_made_of(kernel: Any) -> None:
    kernel.add("sda", "8:0", sectors=4096)
    kernel.add("sda1", "8:1", disk="sda", start="1024", sectors=1024)
    kernel.add("sda2", "8:2", disk="sda", start="2048", sectors=1024)
    loop = {"loop__backing_file": f"{kernel.roots.dev}/sda", "loop__offset": str(2048 * 512)}
    kernel.add("loop0", "7:0", sectors=2048, **loop)
    _mount(kernel, "8:1", "/boot")
    assert loop_users("loop0", roots=kernel.roots) == []  # other sectors of the disk
    kernel.add("dm-3", "253:3", dm__name="vg-lv")
    kernel.stack("dm-3", "sda2")
    assert list(map(str, loop_users("loop0", roots=kernel.roots))) == ["dm device vg-lv (dm-3)"]
    _mount(kernel, "8:0", "/")
    assert "the file system mounted on / (on sda, the same storage)" in _phrases(kernel, "loop0")


def test_a_file_and_those_who_have_it(kernel: Any, tmp_path: Path) -> None:
    file = tmp_path / "disk.img"
    file.write_text("")
    status = os.stat(file)
    major, minor = os.major(status.st_dev), os.minor(status.st_dev)
    lock = f"1: FLOCK ADVISORY WRITE 50 {major:02x}:{minor:02x}:{status.st_ino} 0 EOF\n"
    kernel.put("proc/locks", lock)
    kernel.add("loop0", "7:0", loop__backing_file=str(file))
    other = tmp_path / "elsewhere" / "disk.img"  # same name, another file
    other.parent.mkdir()
    other.write_text("")
    kernel.process(49, "cat", other)
    kernel.process(50, "qemu-system-x86_64", file, file)
    assert [str(user) for user in who(str(file), roots=kernel.roots)] == [
        f"loop device {kernel.roots.dev}/loop0",
        "a lock of process 50 (qemu-system-x86_64)",
        "process 50 (qemu-system-x86_64)",
    ]


def test_what_udev_has_started_only_looks(kernel: Any) -> None:
    for pid, name, parent in (
        (40, "systemd-udevd", 1),
        (41, "(udev-worker)", 40),
        (42, "a) S 1 (b", 41),
        (50, "sh", 1),
        (51, "sleep", 50),
    ):
        kernel.process(pid, name)
        kernel.put(f"proc/{pid}/stat", f"{pid} ({name}) S {parent} {pid} 0")
    found = [processes.is_of_udev(pid, kernel.roots) for pid in (40, 41, 42, 50, 51, 60)]
    assert found == [True, True, True, False, False, True]  # 60 is gone
    assert not Holder("mount", "/mnt").only_looks
    assert not Holder("process", "", pid=os.getpid()).only_looks


def test_who_has_files_in_a_folder(kernel: Any) -> None:
    kernel.process(50, "cat", Path("/mnt/a/file"))
    kernel.process(51, "vi", Path("/mnt/ab"))
    kernel.process(52, "sh")
    (kernel.proc / "52/cwd").symlink_to("/mnt/a")
    assert processes.below("/mnt/a", kernel.roots) == [50, 52]


def test_this_process_is_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "mine.img"
    file.write_text("")
    with open(file, "rb"):
        (user,) = who(str(file))
    assert user.kind == "process"
    assert user.pid == os.getpid()
    assert str(user) == f"process {os.getpid()} ({user.name}, this process itself)"


def test_what_is_not_there_or_no_device(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot look at it: No such file"):
        who(str(tmp_path / "none"))
    with pytest.raises(UsageError, match="neither a block device nor a regular file"):
        who(str(tmp_path))


def test_a_node_without_a_device_behind_it(kernel: Any) -> None:
    kernel.add("sda", "8:0")
    kernel.add("sda1", "8:1", disk="sda")
    _mount(kernel, "8:1", "/boot")
    assert _phrases(kernel, "") == []
