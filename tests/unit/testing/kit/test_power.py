"""Power cuts in a test, on the model."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.block import file_mounts
from dmcopy.errors import BusyError, ClosedError, DeviceError
from dmcopy.ledger import Ledger
from dmcopy.testing.kit import Kit, Mapped, PowerCut
from dmcopy.testing.kit.environment import LackingError
from dmcopy.testing.kit.model import Model

PAGE = 4096
served = pytest.mark.skipif(bool(file_mounts.why_not()), reason=file_mounts.why_not())
as_root = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/loop-control"), reason="takes root and loop"
)


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    with Kit(Model(Ledger(tmp_path / "ledger.jsonl"), volatile=True)) as made:
        yield made


@pytest.fixture
def power_cut(kit: Kit) -> PowerCut:
    return PowerCut(kit, "test")


def write(device: Mapped, *, flush: bool) -> None:  # type: ignore[type-arg]
    with device.open() as io:
        io.write(0, b"a" * PAGE)
        if flush:
            io.flush()
        io.write(8, b"b" * PAGE)


@pytest.mark.parametrize("flush", [False, True])
def test_what_was_not_flushed_is_lost(kit: Kit, power_cut: PowerCut, flush: bool) -> None:
    device = kit.linear(kit.scratch_disk("1M"))
    power_cut(write, device, flush=flush)
    with device.open() as io:
        assert io.read(0, 16) == (b"a" if flush else b"\0") * PAGE + bytes(PAGE)


def test_a_seed_keeps_some_and_the_same_each_time(tmp_path: Path) -> None:
    found = set()
    for seed in (*range(12), *range(12)):
        with Kit(Model(Ledger(tmp_path / "ledger.jsonl"), volatile=True)) as kit:
            device = kit.linear(kit.scratch_disk("1M"))
            PowerCut(kit, "test").cut(lambda: write(device, flush=False), seed=seed)  # noqa: B023
            with device.open() as io:
                found.add((seed, io.read(0, 16)))
    assert len(found) == 12
    assert len({content for _, content in found}) > 2


def test_a_disk_whose_flushes_do_nothing_loses_what_was_flushed(
    kit: Kit, power_cut: PowerCut
) -> None:
    good, bad = kit.scratch_disk("1M"), kit.troubled_disk("1M")
    bad.trouble.drop_flushes = True

    def work() -> None:
        for disk in (good, bad):
            with disk.open() as io:
                io.write(0, b"f" * PAGE)
                io.flush()

    power_cut(work)
    with good.open() as kept, bad.open() as lost:
        assert (kept.read(0, 8), lost.read(0, 8)) == (b"f" * PAGE, bytes(PAGE))


def test_a_cut_in_the_middle(kit: Kit, power_cut: PowerCut) -> None:
    disk, other = kit.scratch_disk("1M"), kit.scratch_disk("1M")

    def work() -> None:
        with disk.open() as io, other.open() as second:
            for number in range(9):
                (io, second)[number % 2].write(8 * number, bytes([number + 1]) * PAGE, fua=True)

    power_cut.cut(work, after_writes=3)
    with disk.open() as io, other.open() as second:
        found = [(io, second)[number % 2].read(8 * number, 1)[0] for number in range(9)]
    assert found == [1, 2, 3, 0, 0, 0, 0, 0, 0]
    power_cut.cut(work, after_writes=100)
    with disk.open() as io:
        assert io.read(64, 1)[0] == 9


def test_what_fails_while_the_power_is_on_is_the_tests_failure(
    kit: Kit, power_cut: PowerCut
) -> None:
    def work() -> None:
        raise DeviceError("x", "do it", 5)

    kit.scratch_disk("1M")
    with pytest.raises(DeviceError):
        power_cut.cut(work, after_writes=3)


def test_devices_begin_with_what_their_disks_kept(kit: Kit, power_cut: PowerCut) -> None:
    snapshot = kit.snapshot(kit.scratch_disk("1M"))
    mirror = kit.mirror(kit.scratch_disk("1M"), kit.scratch_disk("1M"), log=kit.scratch_disk("1M"))
    faulty = kit.faulty(kit.scratch_disk("1M"))
    faulty.error("8:8")
    old = snapshot.open()

    def work() -> None:
        with snapshot.origin.open() as origin:
            origin.write(0, b"x" * PAGE)
            origin.flush()

    power_cut(work)
    with pytest.raises(ClosedError):
        old.read(0, 8)
    with snapshot.open() as snap, snapshot.origin.open() as origin:
        assert snap.read(0, 8) == bytes(PAGE)
        assert origin.read(0, 8) == b"x" * PAGE
    mirror.wait_in_sync()
    with faulty.open() as io, pytest.raises(DeviceError):
        io.read(8, 1)
    faulty.restore()


def test_a_device_that_hangs_is_no_obstacle(kit: Kit, power_cut: PowerCut) -> None:
    slow = kit.faulty(kit.scratch_disk("1M"))
    slow.delay(60_000)
    above = kit.linear(slow)
    above.suspend()
    power_cut(lambda: None)
    assert not above.info.suspended


@served
@as_root
@pytest.mark.parametrize("synced", [False, True])
def test_a_file_system(kit: Kit, power_cut: PowerCut, tmp_path: Path, synced: bool) -> None:
    device = kit.linear(kit.scratch_disk("16M"))
    point = tmp_path / "point"
    point.mkdir()

    def run(*words: str | os.PathLike[str]) -> None:
        subprocess.run(words, check=True, capture_output=True, timeout=60)

    def work() -> None:
        run("mkfs.ext4", "-q", device)
        run("mount", device, point)
        (point / "file").write_text("content")
        if synced:
            run("sync", point / "file")

    power_cut(work)
    run("mount", device, point)
    try:
        assert (point / "file").exists() == synced
    finally:
        run("umount", point)


@served
def test_what_a_process_uses_is_told(kit: Kit, power_cut: PowerCut) -> None:
    device = kit.linear(kit.scratch_disk("1M"))
    with open(device, "rb"), pytest.raises(BusyError, match=str(os.getpid())):
        power_cut(lambda: None)


class Machine:
    def __init__(self, phase: int) -> None:
        self.at = phase
        self.cuts: list[int | None] = []

    def phase(self, nodeid: str) -> int:
        assert nodeid == "test"
        return self.at

    def cut_power(self, nodeid: str, seed: int | None) -> None:
        assert nodeid == "test"
        self.cuts.append(seed)


@pytest.mark.parametrize(("phase", "done"), [(0, ["one", "two"]), (1, ["two"]), (2, [])])
def test_where_the_machine_is_killed_what_was_done_is_not_done_again(
    kit: Kit, phase: int, done: list[str]
) -> None:
    machine = Machine(phase)
    cut = PowerCut(kit, "test", machine)
    did: list[str] = []
    cut(did.append, "one")
    cut.cut(lambda: did.append("two"), seed=7)
    assert did == done
    assert machine.cuts == [None, 7][phase:]
    with pytest.raises(LackingError):
        cut.cut(lambda: None, after_writes=1)
