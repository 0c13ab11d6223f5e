"""Disks of tests on this kernel and in a guest: loop devices, without device-mapper."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.block import file_mounts
from dmcopy.errors import DeviceError
from dmcopy.io import Op
from dmcopy.ledger import Ledger
from dmcopy.testing.kit import Kit, PowerCut, ScratchDisk
from dmcopy.testing.kit import guest as guests
from dmcopy.testing.kit.environment import LackingError
from dmcopy.testing.kit.guest import InGuest
from dmcopy.testing.kit.host import ThisHost
from dmcopy.testing.troubled import uniform
from tests.loop.conftest import LoopFactory

served = pytest.mark.skipif(bool(file_mounts.why_not()), reason=file_mounts.why_not())
PAGE = 4096


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "ledger.jsonl")
    yield made
    assert made.entries() == []


@pytest.mark.usefixtures("loops")
def test_a_disk_is_a_loop_device_with_its_blocks(ledger: Ledger) -> None:
    with Kit(ThisHost(ledger)) as kit:
        disk = kit.scratch_disk("1M", block_size=4096)
        assert disk.path == str(disk)
        with disk.open() as io:
            assert (io.sectors, io.logical_block_size) == (2048, 4096)
            io.write(8, b"x" * PAGE)
        with open(disk, "rb") as file:
            assert file.read(2 * PAGE) == bytes(PAGE) + b"x" * PAGE
        node = disk.path
    assert not Path("/sys/block", os.path.basename(node), "loop").exists()


def write(disk: ScratchDisk, *, sync: bool) -> None:
    with open(disk, "r+b", buffering=0) as file:
        file.write(b"x" * PAGE)
        if sync:
            os.fsync(file.fileno())
        file.write(b"y" * PAGE)


@served
@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("sync", [False, True])
def test_a_power_cut_takes_what_a_program_did_not_sync(ledger: Ledger, sync: bool) -> None:
    with Kit(ThisHost(ledger, volatile=True)) as kit:
        disk = kit.scratch_disk("1M", block_size=4096)
        node = disk.path
        PowerCut(kit, "test")(write, disk, sync=sync)
        assert disk.path == node
        with open(disk, "rb") as file:
            assert file.read(2 * PAGE) == (b"x" if sync else b"\0") * PAGE + bytes(PAGE)


@served
@pytest.mark.usefixtures("loops")
def test_programs_meet_the_troubles_of_a_disk(ledger: Ledger) -> None:
    with Kit(ThisHost(ledger)) as kit:
        disk = kit.troubled_disk("1M", block_size=4096)
        disk.trouble.latency = uniform(0.001, 0.002)
        with disk.open() as io:
            io.write(0, b"x" * PAGE)
            assert io.read(0, 8) == b"x" * PAGE
            disk.trouble.corrupt(0, 8)
            assert io.read(0, 8) != b"x" * PAGE
            disk.trouble.short(Op.READ, 8, 16)
            with pytest.raises(DeviceError):
                io.read(8, 16)
        assert disk.trouble.shortened >= 1
    outlasts = pytest.raises(LackingError, match="no disk that may have troubles outlasts")
    with Kit(InGuest(ledger, volatile=True, phase=0)) as kit, outlasts:
        kit.troubled_disk("1M")


@served
@pytest.mark.usefixtures("loops")
def test_a_cut_in_the_middle(ledger: Ledger) -> None:
    def work(disk: ScratchDisk) -> None:
        with disk.open() as io:
            for number in range(9):
                io.write(8 * number, bytes([number + 1]) * PAGE, fua=True)

    with Kit(ThisHost(ledger, volatile=True)) as kit:
        disk = kit.scratch_disk("1M")
        PowerCut(kit, "test").cut(lambda: work(disk), after_writes=3)
        with disk.open() as io:
            # To a loop device a durable write is a write and a flush, which comes too late here.
            assert [io.read(8 * number, 1)[0] for number in range(5)] == [1, 2, 0, 0, 0]


@pytest.fixture
def attached(loops: LoopFactory, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Loop devices that stand for the disks of a guest, with old data on them."""
    nodes = {
        "small": loops(2048)[0].path,
        "large": loops(16384)[0].path,
        "next": loops(4096)[0].path,
    }
    for node in nodes.values():
        with open(node, "r+b", buffering=0) as file:
            file.write(b"o" * PAGE)
    monkeypatch.setattr(guests, "_node", nodes.__getitem__)
    monkeypatch.setenv("DMCOPY_DISKS", " ".join(nodes))
    return nodes


def content(disk: ScratchDisk) -> bytes:
    with open(disk, "rb") as file:
        return file.read(PAGE)


def test_disks_of_a_guest_that_outlast_a_power_cut(
    attached: dict[str, str], ledger: Ledger
) -> None:
    with Kit(InGuest(ledger, volatile=True, phase=0)) as kit:
        first, whole = kit.scratch_disk(1024 << 9), kit.scratch_disk(4096 << 9)
        blocks = kit.scratch_disk("1M", block_size=4096)
        assert whole.path == attached["next"]  # as it is: of that size, and with such blocks
        assert len({first.path, whole.path, blocks.path}) == 3
        assert [content(disk) for disk in kit.disks] == [bytes(PAGE)] * 3
        for disk in kit.disks:
            with open(disk, "r+b", buffering=0) as file:
                file.write(b"n" * PAGE)
        with pytest.raises(LackingError, match="no disk of 1 MiB is left that outlasts"):
            kit.scratch_disk("1M")
    with Kit(InGuest(ledger, volatile=True, phase=1)) as kit:
        kit.scratch_disk(1024 << 9), kit.scratch_disk(4096 << 9)
        kit.scratch_disk("1M", block_size=4096)
        assert [content(disk) for disk in kit.disks] == [b"n" * PAGE] * 3


def test_a_disk_of_a_guest_by_its_serial(attached: dict[str, str], ledger: Ledger) -> None:
    with Kit(InGuest(ledger, volatile=False, phase=0)) as kit:
        mine = kit.scratch_disk(2048 << 9, serial="small")
        other = kit.scratch_disk("1M")
        assert mine.path == attached["small"]
        assert other.path not in attached.values()
        assert content(mine) == bytes(PAGE)
