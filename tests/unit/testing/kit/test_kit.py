"""What the fixtures make, on the model."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.block import file_mounts
from dmcopy.errors import BusyError, ClosedError, DeadlineError, DeviceError, UsageError
from dmcopy.io import Op
from dmcopy.ledger import Ledger
from dmcopy.table import Error, Table
from dmcopy.testing.kit import Kit
from dmcopy.testing.kit.model import Model
from dmcopy.testing.troubled import lognormal

PAGE = 4096
served = pytest.mark.skipif(bool(file_mounts.why_not()), reason=file_mounts.why_not())


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.jsonl")


@pytest.fixture
def kit(ledger: Ledger) -> Iterator[Kit]:
    with Kit(Model(ledger)) as made:
        folder = made.environment.folder
        yield made
    assert not folder.exists()
    assert ledger.entries() == []


def test_a_snapshot_keeps_what_its_origin_had(kit: Kit) -> None:
    snapshot = kit.snapshot(kit.scratch_disk("1M"), chunk_size=16)
    with snapshot.origin.open() as origin, snapshot.open() as snap:
        assert snapshot.status().empty
        origin.write(0, b"a" * PAGE)
        snap.write(16, b"b" * PAGE)
        assert snap.read(0, 8) == bytes(PAGE)
        assert origin.read(0, 24) == b"a" * PAGE + bytes(2 * PAGE)
        assert snapshot.status().used is not None
        assert not snapshot.status().empty


def test_snapshots_of_one_origin_share_its_device(kit: Kit) -> None:
    disk = kit.scratch_disk("1M")
    one, two = kit.snapshot(disk), kit.snapshot(disk, store="N")
    assert one.origin is two.origin
    with one.origin.open() as origin, one.open() as first, two.open() as second:
        origin.write(8, b"a" * PAGE)
        assert first.read(8, 8) == second.read(8, 8) == bytes(PAGE)


def test_a_mirror_writes_to_all_legs(kit: Kit) -> None:
    legs = kit.scratch_disk("1M"), kit.scratch_disk("2M")
    mirror = kit.mirror(*legs, log=kit.scratch_disk("1M"), region_size=64)
    mirror.wait_in_sync()
    assert mirror.sectors == legs[0].sectors
    with mirror.open() as io:
        io.write(100, b"m" * 512)
    for leg in legs:
        with leg.open() as io:
            assert io.read(100, 1) == b"m" * 512


def test_a_wait_for_a_mirror_has_a_deadline(kit: Kit) -> None:
    first = kit.faulty(kit.scratch_disk("1M"))
    first.delay(200)
    mirror = kit.mirror(first, kit.scratch_disk("1M"))
    with pytest.raises(DeadlineError, match=r"mirror is not in sync after 0\.05 s"):
        mirror.wait_in_sync(0.05)


def test_linear_and_striped(kit: Kit) -> None:
    disk = kit.scratch_disk("1M")
    part = kit.linear(disk, start=100, length=50)
    rest = kit.linear(disk, start=2000)
    assert (part.sectors, rest.sectors) == (50, 48)
    with part.open() as io:
        io.write(1, b"p" * 512)
    with disk.open() as io:
        assert io.read(101, 1) == b"p" * 512
    striped = kit.striped(kit.scratch_disk(100 << 9), kit.scratch_disk("1M"), chunk_size=8)
    assert striped.sectors == 2 * 96


def test_each_fault_and_the_way_back(kit: Kit) -> None:
    faulty = kit.faulty(kit.scratch_disk("1M"))
    faulty.error("8:8", (1000, 1))
    faulty.write_error("16:8")
    faulty.drop_writes("24:8")
    faulty.corrupt("32:8", byte=3, value=7)
    faulty.delay(1, "40:8")
    with faulty.open() as io:
        for sector in (8, 1000):
            with pytest.raises(DeviceError) as caught:
                io.read(sector, 1)
            assert caught.value.errno == errno.EIO
        with pytest.raises(DeviceError):
            io.write(16, bytes(PAGE))
        assert io.read(16, 8) == bytes(PAGE)
        io.write(24, b"x" * PAGE)
        assert io.read(24, 8) == bytes(PAGE)
        io.write(32, b"x" * PAGE)
        assert io.read(32, 8) == b"xxx\7" + b"x" * (PAGE - 4)
        io.write(40, b"y" * PAGE)
        faulty.restore()
        assert io.read(8, 8) == bytes(PAGE)
        assert io.read(40, 8) == b"y" * PAGE


def test_a_troubled_disk_below_others(kit: Kit) -> None:
    disk = kit.troubled_disk("1M", block_size=1024, seed=3)
    device = kit.linear(disk, start=8)
    disk.trouble.latency = lognormal(0.001)
    once = disk.trouble.short(Op.WRITE, 16, 8, times=1)
    with device.open() as io, disk.open() as whole:
        with pytest.raises(DeviceError):
            io.write(8, b"s" * PAGE)
        assert whole.read(16, 8) == b"s" * (PAGE // 2) + bytes(PAGE // 2)
        assert (once.times, disk.trouble.shortened, io.logical_block_size) == (0, 1, 1024)
        io.write(8, b"n" * PAGE)
        disk.trouble.corrupt(16, 8)
        assert io.read(8, 8) != b"n" * PAGE
    with pytest.raises(UsageError, match="disk1: only a troubled_disk can have trouble"):
        kit.scratch_disk("1M").trouble.drop_flushes = True


@pytest.mark.parametrize(("byte", "value"), [(-1, 0), (1 << 20, 0), (0, 256), (0, -1)])
def test_no_byte_to_corrupt(kit: Kit, byte: int, value: int) -> None:
    with pytest.raises(UsageError):
        kit.faulty(kit.scratch_disk("1M")).corrupt(byte=byte, value=value)


def test_a_table_names_devices_as_they_are(kit: Kit) -> None:
    disk = kit.scratch_disk("1M", serial="data")
    low = kit(f"0 1024 linear {disk} 1024")
    top = kit(Table.parse(f"0 8 error\n8 1016 linear {low} 8"))
    with top.open() as io:
        io.write(8, b"t" * 512)
    with disk.open() as io:
        assert io.read(1032, 1) == b"t" * 512
    assert [line.target for line in top.statuses()] == ["error", "linear"]


def test_a_stack_is_made_in_order(kit: Kit) -> None:
    disk = kit.scratch_disk("1M")
    tables = {"low": f"0 1024 linear {disk} 0", "top": "0 1024 snapshot-origin {low}"}
    made = kit.stack(tables)
    assert made["low"].info.open_count == 1
    assert made["top"].name.endswith("top")
    with pytest.raises(KeyError):
        kit.stack({"top": "0 1024 linear {low} 0"})


def test_a_device_is_paused_swapped_and_told(kit: Kit) -> None:
    disk = kit.scratch_disk("1M")
    device = kit.linear(disk)
    events = device.info.events
    with device.paused():
        assert device.info.suspended
        device.load("0 8 zero")
        assert device.sectors == 8
    assert not device.info.suspended
    with pytest.raises(DeadlineError, match=f"no event after number {events}"):
        device.wait(events, timeout=0.01)
    device.swap(Table.of(16, Error()), flush=False)
    with device.open() as io, pytest.raises(DeviceError):
        io.read(0, 1)
    with pytest.raises(UsageError):
        device.swap("0 8 linear /nowhere 0")
    assert device.sectors == 16
    with pytest.raises(DeviceError):
        device.message("hello")


def test_a_device_with_large_blocks_takes_no_small_ones(kit: Kit) -> None:
    disk = kit.scratch_disk("1M", block_size=4096)
    with kit.linear(disk).open() as io:
        assert io.logical_block_size == 4096
        with pytest.raises(UsageError):
            io.write(0, bytes(512))
        io.zero_out(0, 8)
        io.discard(8, 8)
        io.flush()


@pytest.mark.parametrize(
    "options", [{"size": 0}, {"size": "1M", "block_size": 513}, {"size": 512, "block_size": 4096}]
)
def test_disks_that_cannot_be(kit: Kit, options: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        kit.scratch_disk(**options)  # type: ignore[arg-type]


def test_a_serial_is_of_one_disk(kit: Kit) -> None:
    assert kit.scratch_disk("1M", serial="b").serial == "b"
    assert kit.scratch_disk("1M").serial == "disk1"
    with pytest.raises(UsageError, match="there is a disk b already"):
        kit.scratch_disk("1M", serial="b")


def test_a_handle_ends_with_its_device(kit: Kit) -> None:
    device = kit.linear(kit.scratch_disk("1M"))
    handle = device.open()
    device.close()
    with pytest.raises(ClosedError):
        handle.read(0, 1)


@served
def test_programs_find_it_by_its_path(kit: Kit) -> None:
    disk = kit.scratch_disk("1M")
    device = kit.linear(disk)
    made = ["dd", f"of={device.path}", "if=/dev/zero", "bs=4096", "count=1", "conv=notrunc,fsync"]
    with device.open() as io:
        io.write(0, b"z" * 2 * PAGE)
        subprocess.run(made, check=True, capture_output=True, timeout=60)
        assert io.read(0, 16) == bytes(PAGE) + b"z" * PAGE
    assert os.fspath(device) == device.path
    above = kit(f"0 8 linear {device.path} 8")  # the path is the device, not a loop into itself
    with above.open() as io:
        assert io.read(0, 8) == b"z" * PAGE


@served
def test_what_is_in_use_is_told_by_its_user(ledger: Ledger) -> None:
    kit = Kit(Model(ledger))
    device = kit.linear(kit.scratch_disk("1M"))
    with open(device, "rb"), pytest.raises(BusyError, match=str(os.getpid())):
        kit.close()
    assert not kit.environment.folder.exists()
