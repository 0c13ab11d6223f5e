"""Nbd devices that come and go, with a driver that is played."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dmcopy.cli.main import main
from dmcopy.errors import BusyError, DeviceError, UsageError
from dmcopy.export.base import Place
from dmcopy.export.nbd.devices import NbdDevices
from dmcopy.export.nodes import Nodes
from dmcopy.io import Reactor
from dmcopy.io.nbd import WAIT_SECONDS
from dmcopy.io.simulated import SimulatedDisk
from dmcopy.ledger import Ledger, LedgerEntry
from dmcopy.mapper.reap import Reaper
from tests.unit.export.lasting import SECTORS
from tests.unit.export.nbd_device.driver import (
    CONNECT,
    DISCONNECT,
    FLUSH,
    FUA,
    READ,
    RECONFIGURE,
    SECONDS,
    TRIM,
    WRITE,
    ZEROES,
    Driver,
    result,
    until,
)

WRITABLE = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 11


def test_a_device_is_what_it_was_said_to_be(
    devices: NbdDevices, driver: Driver, ledger: Ledger
) -> None:
    disk = SimulatedDisk(SECTORS, logical_block_size=4096)
    assert devices.add("disk", disk) == "/dev/nbd0"
    device = driver.devices[0]
    assert device.values == {
        "size": SECTORS << 9,
        "block": 4096,
        "timeout": 0,  # a device may be slow, and suspended for a while
        "flags": WRITABLE,
        "dead_timeout": WAIT_SECONDS,
    }
    assert (driver.blocks / "nbd0/queue/io_timeout").read_text() == "5000"
    (entry,) = ledger.entries()
    assert (entry.kind, entry.name, entry.uuid) == ("nbd", "/dev/nbd0", device.backend)
    assert driver.find(devices.mark("disk")) == 0
    devices.remove("disk")
    assert not driver.devices
    assert ledger.entries() == []


def test_what_udev_reads_of_a_new_device_is_answered_meanwhile(
    devices: NbdDevices, driver: Driver, disk: SimulatedDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """6.12 lets no process set a queue's timeout before what is under way has ended."""
    told: list[int] = []

    def waits(number: int) -> None:
        cookie, deadline = driver.ask(READ, 0, 8), time.monotonic() + SECONDS
        while cookie not in driver.devices[number].results:
            assert time.monotonic() < deadline, "the read is not answered"
            driver.look(number)
        told.append(number)

    monkeypatch.setattr(driver, "retry_soon", waits)
    devices.add("disk", disk)
    assert told == [0]


def test_what_is_read_only_is_so_there(devices: NbdDevices, driver: Driver) -> None:
    disk = SimulatedDisk(8)
    disk.read_only = True
    devices.add("disk", disk)
    assert driver.devices[0].values["flags"] == 1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 8


def test_each_kind_of_request_reaches_the_device(
    devices: NbdDevices, driver: Driver, reactor: Reactor, disk: SimulatedDisk
) -> None:
    devices.add("disk", disk)
    old = disk.read(0, 64)
    assert result(reactor, driver, driver.ask(READ, 0, 64)) == (0, old)
    data = os.urandom(64 << 9)
    for what in (WRITE, WRITE | FUA):
        assert result(reactor, driver, driver.ask(what, 8, 64, data)) == (0, b"")
    assert result(reactor, driver, driver.ask(FLUSH, 0, 0)) == (0, b"")
    assert disk.read(8, 64) == data
    assert result(reactor, driver, driver.ask(ZEROES, 8, 8)) == (0, b"")
    assert result(reactor, driver, driver.ask(TRIM, 16, 8)) == (0, b"")
    assert result(reactor, driver, driver.ask(READ, 8, 8)) == (0, bytes(4096))
    assert result(reactor, driver, driver.ask(READ, SECTORS, 8))[0] == errno.EINVAL


def test_names_blocks_and_places_that_cannot_be(
    devices: NbdDevices, driver: Driver, reactor: Reactor
) -> None:
    devices.add("disk", SimulatedDisk(8))
    with pytest.raises(UsageError, match="there is a block device for disk already"):
        devices.add("disk", SimulatedDisk(8))
    with pytest.raises(UsageError, match="blocks of 8192 bytes, and those of nbd devices"):
        devices.add("other", SimulatedDisk(32, logical_block_size=8192))
    with pytest.raises(UsageError, match="--via nbd-device has no socket"):
        NbdDevices(reactor, Place(socket="here"))
    assert len(driver.devices) == 1


def test_one_that_cannot_be_made_leaves_nothing(
    devices: NbdDevices, driver: Driver, ledger: Ledger
) -> None:
    driver.fails[CONNECT] = errno.ENOSPC  # there is no number left
    with pytest.raises(DeviceError, match="make an nbd device of it: No space left"):
        devices.add("disk", SimulatedDisk(8))
    assert ledger.entries() == []
    driver.fails.clear()
    devices.add("disk", SimulatedDisk(8))


def test_what_another_has_taken_away_is_not_removed_from_the_next(
    devices: NbdDevices, driver: Driver, ledger: Ledger
) -> None:
    """As by nbd-client -d, and nbd-client with the same node."""
    devices.add("disk", SimulatedDisk(8))
    (driver.blocks / "nbd0/backend").write_text("somebody's\n")
    driver.devices[0].backend = "somebody's"
    driver.devices[0].socket.close()
    devices.remove("disk")
    assert list(driver.devices) == [0]
    assert DISCONNECT not in driver.calls
    assert ledger.entries() == []


def test_one_that_cannot_be_removed_is_still_served_and_noted(
    devices: NbdDevices, driver: Driver, ledger: Ledger, reactor: Reactor
) -> None:
    devices.add("disk", SimulatedDisk(8))
    driver.fails[DISCONNECT] = errno.EINTR
    with pytest.raises(DeviceError, match="/dev/nbd0: cannot disconnect it"):
        devices.remove("disk")
    assert len(ledger.entries()) == 1
    assert result(reactor, driver, driver.ask(READ, 0, 8))[0] == 0
    driver.fails.clear()


def test_one_that_is_in_use_stays_until_it_is_cut_off(
    devices: NbdDevices, driver: Driver, reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices.add("disk", SimulatedDisk(8))

    def used(path: str) -> None:
        raise BusyError(path, ["mounted on /mnt"])

    monkeypatch.setattr("dmcopy.export.lasting.check_unused", used)
    with pytest.raises(BusyError, match="mounted on /mnt"):
        devices.remove("disk")
    assert result(reactor, driver, driver.ask(READ, 0, 8))[0] == 0
    with pytest.raises(BusyError, match="they were cut off"):
        devices.close()
    assert not driver.devices


def test_what_a_killed_server_had_is_taken_over(
    reactor: Reactor, driver: Driver, ledger: Ledger, disk: SimulatedDisk
) -> None:
    """What that one has not answered is asked again, and the size is the device's."""
    first = NbdDevices(reactor, ledger=ledger, recoverable=True)
    first.add("disk", disk)
    mark = first.mark("disk")
    first.let_go()
    asked = driver.ask(WRITE, 0, 8, b"\xdd" * 4096)
    until(reactor, driver, lambda: driver.devices[0].dead)
    driver.deaf = 2  # it is a little late to hear of it
    disk.sectors, disk.content = SECTORS + 8, disk.content + bytes(4096)
    with NbdDevices(reactor, ledger=ledger, recoverable=True) as second:
        assert second.add("disk", disk, left=mark) == "/dev/nbd0"
        assert second.mark("disk") == mark
        assert driver.calls == [CONNECT, *[RECONFIGURE] * 4]
        assert driver.devices[0].values["size"] == (SECTORS + 8) << 9
        assert result(reactor, driver, asked) == (0, b"")
        assert result(reactor, driver, driver.ask(READ, 0, 8)) == (0, b"\xdd" * 4096)
    assert not driver.devices


def test_one_that_cannot_be_taken_over_waits_for_another_try(
    reactor: Reactor,
    driver: Driver,
    ledger: Ledger,
    disk: SimulatedDisk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with NbdDevices(reactor, ledger=ledger, recoverable=True) as served:
        served.add("disk", disk)
        mark = served.mark("disk")
        served.let_go()
        before = len(ledger.entries())
        with monkeypatch.context() as patch:  # another process is its server, after all
            patch.setattr("dmcopy.export.nbd.attached._TAKE_SECONDS", 0.1)
            with pytest.raises(DeviceError, match=r"/dev/nbd0: cannot take it over: .*busy"):
                served.add("disk", disk, left=mark)
        assert list(driver.devices) == [0]
        assert len(ledger.entries()) == before
        until(reactor, driver, lambda: driver.devices[0].dead)
        served.add("disk", disk, left=mark)


def test_one_that_has_gone_is_made_anew(devices: NbdDevices, driver: Driver) -> None:
    devices.add("disk", SimulatedDisk(8), left="dmcopy-0123456789abcdef")
    assert driver.devices[0].backend == "dmcopy-0123456789abcdef"


def test_it_follows_the_size_of_the_device(
    devices: NbdDevices, driver: Driver, disk: SimulatedDisk
) -> None:
    devices.add("other", SimulatedDisk(8))
    devices.add("disk", disk)
    disk.sectors, disk.content = SECTORS + 8, disk.content + bytes(4096)
    devices.resized("disk")
    assert driver.devices[1].values["size"] == (SECTORS + 8) << 9
    assert driver.calls == [CONNECT, CONNECT, RECONFIGURE]


def test_without_recovery_a_process_watches_its_server(
    reactor: Reactor, driver: Driver, ledger: Ledger
) -> None:
    with NbdDevices(reactor, ledger=ledger) as served:
        served.add("disk", SimulatedDisk(8))
        assert driver.devices[0].values["dead_timeout"] == 0
        watcher = served._devices["disk"]._watcher  # type: ignore[attr-defined]
        words = Path(f"/proc/{watcher.pid}/cmdline").read_text().split("\0")
        assert words[-3:-1] == ["dmcopy.export.nbd.watcher", served.mark("disk")]
        assert watcher.poll() is None
    assert watcher.poll() is not None
    assert not driver.devices


def test_the_watcher_disconnects_what_has_the_mark(
    driver: Driver, devices: NbdDevices, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dmcopy.export.nbd import watcher

    devices.add("other", SimulatedDisk(8))
    devices.add("disk", SimulatedDisk(8))
    ours, theirs = os.pipe()
    os.close(theirs)  # as when the server ends
    monkeypatch.setattr("os.read", lambda _fd, size, read=os.read: read(ours, size))
    monkeypatch.setattr("sys.argv", ["watcher", devices.mark("disk")])
    watcher.main()
    assert list(driver.devices) == [0]
    watcher.main()  # it is gone by now
    os.close(ours)


class NoDevices:
    """A mapper that has none."""

    def ls(self) -> list[Any]:
        return []


def reap(ledger: Ledger, owner: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Reap all nbd devices that are noted, the first of which `owner` made; return how many."""
    first, *others = ledger.entries()

    def entries(_: Ledger) -> list[LedgerEntry]:
        return [replace(first, owner=owner), *others]

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "entries", entries)
        reaper = Reaper(NoDevices(), ledger, lambda one: one.owner == owner)  # type: ignore[arg-type]
        assert list(reaper.script()) == ["nbd-client -d /dev/nbd0"]
        done = reaper.run()
    assert done.left == {}
    return len(done.removed), len(done.vanished)


def test_what_a_killed_server_has_left_is_removed(
    devices: NbdDevices, driver: Driver, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else, whatever number it has."""
    devices.add("disk", SimulatedDisk(8))
    devices.add("other", SimulatedDisk(8))
    assert reap(ledger, "1 1", monkeypatch) == (1, 0)
    assert list(driver.devices) == [1]


def test_what_another_server_has_taken_over_is_its(
    devices: NbdDevices, driver: Driver, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices.add("disk", SimulatedDisk(8))
    ledger.add("nbd", "/dev/nbd0", uuid=devices.mark("disk"))
    assert reap(ledger, "1 1", monkeypatch) == (0, 1)
    assert list(driver.devices) == [0]


def test_root_has_nodes_of_it_where_there_is_no_ublk(
    reactor: Reactor,
    driver: Driver,
    ledger: Ledger,
    disk: SimulatedDisk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DMCOPY_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("dmcopy.export.nbd.devices.NbdDevices.why_not", lambda: "")
    monkeypatch.setattr("dmcopy.export.ublk.devices.UblkDevices.why_not", lambda: "there is none")
    monkeypatch.setattr("dmcopy.io.nbd.node", lambda number: str(driver.blocks / f"nbd{number}"))
    first = Nodes(reactor, ledger)
    first.add("data", disk)
    mark = first.mark("data")
    assert mark == driver.devices[0].backend
    assert os.readlink(tmp_path / "dev/data") == str(driver.blocks / "nbd0")
    first.let_go()
    until(reactor, driver, lambda: driver.devices[0].dead)
    second = Nodes(reactor, ledger)
    second.add("data", disk, left=mark)
    assert second.mark("data") == mark
    assert result(reactor, driver, driver.ask(READ, 0, 1))[0] == 0
    second.remove("data")
    assert not driver.devices
    assert not os.path.lexists(tmp_path / "dev/data")


def test_where_there_is_no_driver_one_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dmcopy.io.nbd._MODULE", "/no/module")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert main(["serve", "--via", "nbd-device", str(tmp_path)]) == 5
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "nbd-device: this kernel has no nbd driver" in said.err
    assert "(modprobe nbd)" in said.err
