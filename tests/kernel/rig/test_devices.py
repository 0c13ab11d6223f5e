"""pyudev sees the guest's disks and what happens to a device: what other tests stand on."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import pyudev

from tests.kernel.programs import run

pytestmark = pytest.mark.kernel(either=True)

Events = Callable[[str, Callable[[pyudev.Device], bool]], pyudev.Device]
DEADLINE = 60.0


@pytest.fixture
def events() -> Events:
    """Return `events(action, wanted)`: waits for udev to tell of a block device that is wanted."""
    monitor = pyudev.Monitor.from_netlink(pyudev.Context())
    monitor.filter_by("block")
    monitor.start()

    def wait(action: str, wanted: Callable[[pyudev.Device], bool]) -> pyudev.Device:
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            device = monitor.poll(timeout=1)
            if device is not None and device.action == action and wanted(device):
                return device
        pytest.fail(f"no {action!r} from udev within {DEADLINE:.0f} s")

    return wait


@contextlib.contextmanager
def module(name: str, *options: str) -> Iterator[None]:
    run("modprobe", name, *options)
    try:
        yield
    finally:
        run("modprobe", "-r", name)


def test_disks_are_found_by_serial(scratch_disks: list[Path]) -> None:
    serials = {
        device.properties.get("ID_SERIAL"): device
        for device in pyudev.Context().list_devices(subsystem="block", DEVTYPE="disk")
    }
    for disk in scratch_disks:
        device = serials[disk.name.removeprefix("virtio-")]
        assert Path(device.device_node) == disk.resolve()
        with disk.open("rb") as file:
            assert device.attributes.asint("size") * 512 == file.seek(0, os.SEEK_END) > 0


def test_scratch_disks_start_as_zeroes(scratch_disks: list[Path]) -> None:
    disk = scratch_disks[0]
    with disk.open("r+b", buffering=0) as file:
        assert file.read(1 << 20) == bytes(1 << 20)
        file.write(b"x" * (1 << 20))
        os.fsync(file)


def test_add_change_and_remove_of_a_scsi_disk(events: Events) -> None:
    with module("scsi_debug", "dev_size_mb=8"):
        added = events("add", lambda device: device.properties.get("ID_MODEL") == "scsi_debug")
        name = added.sys_name
        Path(f"/sys/block/{name}/uevent").write_text("change")
        changed = events("change", lambda device: device.sys_name == name)
        assert changed.device_node == added.device_node
        Path(f"/sys/block/{name}/device/delete").write_text("1")
        events("remove", lambda device: device.sys_name == name)
    assert not Path(added.device_node).exists()


def test_change_of_a_loop_device(events: Events, tmp_path: Path) -> None:
    """A loop device is added once and then only changes: its file comes and goes."""
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 1 << 20)
    run("modprobe", "loop")
    node = run("losetup", "--find", "--show", str(image)).strip()
    name = Path(node).name
    try:
        events("change", lambda device: device.sys_name == name)
        assert int(Path(f"/sys/block/{name}/size").read_text()) == 2048
    finally:
        run("losetup", "--detach", node)
    events("change", lambda device: device.sys_name == name)
    deadline = time.monotonic() + DEADLINE
    while Path(f"/sys/block/{name}/loop").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/sys/block/{name}/loop").exists()


def test_add_and_remove_of_a_loop_device(events: Events) -> None:
    run("modprobe", "loop")
    import fcntl

    with open("/dev/loop-control", "rb") as control:
        number = 77
        fcntl.ioctl(control, 0x4C80, number)  # LOOP_CTL_ADD
        events("add", lambda device: device.sys_name == f"loop{number}")
        fcntl.ioctl(control, 0x4C81, number)  # LOOP_CTL_REMOVE
        events("remove", lambda device: device.sys_name == f"loop{number}")


@pytest.mark.kernel(either=False)  # each kernel has modules of its own
@pytest.mark.parametrize("name", ["dm_snapshot", "dm_mirror", "nbd", "loop", "fuse", "null_blk"])
def test_modules_can_be_loaded(name: str) -> None:
    run("modprobe", name)
    assert Path(f"/sys/module/{name}").is_dir()


@pytest.mark.kernel(either=False)  # each kernel has modules and options of its own
def test_no_selinux_looks_at_each_call() -> None:
    assert "selinuxfs" not in Path("/proc/filesystems").read_text(encoding="ascii")


def test_device_mapper_nodes_come_from_udev() -> None:
    run("dmsetup", "create", "dmcopy-rig", "--table", "0 2048 zero")
    try:
        assert Path("/dev/mapper/dmcopy-rig").is_symlink()
    finally:
        run("dmsetup", "remove", "--retry", "dmcopy-rig")
