"""Ublk devices that come and go, with a driver that is played."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from dmcopy.errors import BusyError, DeviceError, MissingError, UsageError
from dmcopy.export.base import Place
from dmcopy.export.ublk.devices import UblkDevices
from dmcopy.io import Reactor
from dmcopy.io.simulated import SimulatedDisk
from dmcopy.ledger import Ledger
from dmcopy.mapper.waiting import drive
from tests.unit.export.lasting import SECTORS
from tests.unit.export.ublk.driver import READ, UPDATE_SIZE, WRITE, Driver, result, until

ADD, DELETE, START, STOP, PARAMS, RECOVER = 0x04, 0x05, 0x06, 0x07, 0x08, 0x10


def test_a_device_is_what_it_was_said_to_be(
    devices: UblkDevices, driver: Driver, ledger: Ledger
) -> None:
    disk = SimulatedDisk(SECTORS, logical_block_size=4096)
    assert devices.add("disk", disk) == "/dev/ublkb0"
    device = driver.devices[0]
    attributes, *shifts, most, chunk, sectors, _, _, granularity, _, _, segments = device.params
    assert attributes == 4 | 8  # a volatile cache, FUA
    assert shifts == [12] * 4
    assert (most, chunk, sectors, granularity, segments) == (512, 0, SECTORS, 4096, 1)
    assert device.flags == 1 << 3 | 1 << 4 | 1 << 6
    assert device.pid == os.getpid()
    (entry,) = ledger.entries()
    assert (entry.kind, entry.name) == ("ublk", "/dev/ublkb0")
    assert int(entry.uuid, 16) == device.mark
    found = driver.find(devices.mark("disk"))
    assert found is not None
    assert (found.number, found.path, found.mark) == (0, "/dev/ublkb0", entry.uuid)
    devices.remove("disk")
    assert not driver.devices
    assert ledger.entries() == []


def test_what_is_read_only_is_so_there(devices: UblkDevices, driver: Driver) -> None:
    disk = SimulatedDisk(8)
    disk.read_only = True
    devices.add("disk", disk)
    assert driver.devices[0].params[0] & 1


def test_names_and_blocks_that_cannot_be(devices: UblkDevices, driver: Driver) -> None:
    devices.add("disk", SimulatedDisk(8))
    with pytest.raises(UsageError, match="there is a block device for disk already"):
        devices.add("disk", SimulatedDisk(8))
    with pytest.raises(UsageError, match="blocks of 8192 bytes"):
        devices.add("other", SimulatedDisk(32, logical_block_size=8192))
    assert len(driver.devices) == 1


def test_it_takes_no_place(reactor: Reactor) -> None:
    with pytest.raises(UsageError, match="--via ublk has no at: leave out --at here"):
        UblkDevices(reactor, Place(at="here"))


@pytest.mark.parametrize("command", [ADD, PARAMS, START])
def test_one_that_cannot_be_made_leaves_nothing(
    devices: UblkDevices, driver: Driver, ledger: Ledger, command: int
) -> None:
    driver.fails[command] = errno.ENOMEM
    with pytest.raises(DeviceError, match="Cannot allocate memory"):
        devices.add("disk", SimulatedDisk(8))
    assert not driver.devices
    assert ledger.entries() == []
    driver.fails.clear()
    devices.add("disk", SimulatedDisk(8))


def test_one_that_cannot_be_removed_is_still_served_and_noted(
    devices: UblkDevices, driver: Driver, ledger: Ledger, reactor: Reactor
) -> None:
    devices.add("disk", SimulatedDisk(8))
    driver.fails[STOP] = errno.EINTR
    with pytest.raises(DeviceError, match="/dev/ublkb0: cannot stop it"):
        devices.remove("disk")
    assert len(ledger.entries()) == 1
    assert result(reactor, driver, driver.ask(READ, 0, 8))[0] == 4096
    driver.fails.clear()


def test_one_that_is_in_use_stays_until_it_is_cut_off(
    devices: UblkDevices,
    driver: Driver,
    reactor: Reactor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    devices.add("disk", SimulatedDisk(8))

    def used(path: str) -> None:
        raise BusyError(path, ["mounted on /mnt"])

    monkeypatch.setattr("dmcopy.export.lasting.check_unused", used)
    with pytest.raises(BusyError, match="mounted on /mnt"):
        drive(devices.reactor, devices.check_unused("disk"), 9)
    with pytest.raises(BusyError, match="mounted on /mnt"):
        devices.remove("disk")
    assert result(reactor, driver, driver.ask(READ, 0, 8))[0] == 4096
    with pytest.raises(BusyError, match="they were cut off"):
        devices.close()
    assert (
        driver.calls[-1] == 0x14
    )  # to wait for it would be to wait for the users that are cut off
    assert not driver.devices


def test_without_threads_one_is_cut_off_and_removed(
    devices: UblkDevices, driver: Driver, ledger: Ledger, only_threads: Callable[[int], None]
) -> None:
    """There is none to ask the driver by while this one answers; what is asked of it fails."""
    devices.add("disk", SimulatedDisk(8))
    only_threads(0)
    with pytest.raises(MissingError, match="no more processes and threads may be started"):
        devices.remove("disk")
    assert driver.devices
    with pytest.raises(MissingError, match="no more processes and threads may be started"):
        devices.close()
    assert not driver.devices
    assert ledger.entries() == []
    devices.close()


def test_what_is_under_way_ends_before_it_is_removed(
    devices: UblkDevices, driver: Driver, disk: SimulatedDisk
) -> None:
    devices.add("disk", disk)
    device = driver.devices[0]
    tags = {driver.ask(WRITE, start, 8, b"\xdd" * 4096) for start in range(0, 64 * 8, 8)}
    devices.remove("disk")
    assert {tag: length for tag, (length, _) in device.results.items()} == dict.fromkeys(tags, 4096)
    assert disk.read(0, 512) == b"\xdd" * (512 << 9)


def test_what_a_killed_server_had_is_taken_over(
    reactor: Reactor, driver: Driver, ledger: Ledger, disk: SimulatedDisk
) -> None:
    """What that one has not answered is asked again."""
    first = UblkDevices(reactor, ledger=ledger, recoverable=True)
    first.add("disk", disk)
    mark = first.mark("disk")
    asked = driver.ask(WRITE, 0, 8, b"\xdd" * 4096)
    first.let_go()
    assert driver.devices[0].state == 2
    with UblkDevices(reactor, ledger=ledger, recoverable=True) as second:
        assert second.add("disk", disk, left=mark) == "/dev/ublkb0"
        assert second.mark("disk") == mark
        assert driver.devices[0].pid == os.getpid()
        assert result(reactor, driver, asked)[0] == 4096
        assert result(reactor, driver, driver.ask(READ, 0, 8)) == (4096, b"\xdd" * 4096)
    assert not driver.devices


def test_one_that_cannot_be_taken_over_waits_for_another_try(
    reactor: Reactor, driver: Driver, ledger: Ledger, disk: SimulatedDisk
) -> None:
    with UblkDevices(reactor, ledger=ledger, recoverable=True) as served:
        served.add("disk", disk)
        mark = served.mark("disk")
        served.let_go()
        before = len(ledger.entries())
        driver.fails[0x11] = errno.EINTR
        with pytest.raises(DeviceError, match="cannot continue with it"):
            served.add("disk", disk, left=mark)
        assert driver.devices[0].state == 2
        assert len(ledger.entries()) == before
        driver.fails.clear()
        driver.devices[0].ring = None
        served.add("disk", disk, left=mark)


def test_one_that_has_gone_is_made_anew(devices: UblkDevices, driver: Driver) -> None:
    devices.add("disk", SimulatedDisk(8), left="0123456789abcdef")
    assert driver.devices[0].mark == 0x0123456789ABCDEF


def test_without_recovery_it_dies_with_its_server(
    reactor: Reactor, driver: Driver, ledger: Ledger
) -> None:
    served = UblkDevices(reactor, ledger=ledger)
    served.add("disk", SimulatedDisk(8))
    assert driver.devices[0].flags == 1 << 6
    served.let_go()
    assert driver.devices[0].state == 0


@pytest.mark.parametrize("able", [False, True])
def test_it_follows_the_size_of_the_device(
    devices: UblkDevices, driver: Driver, disk: SimulatedDisk, *, able: bool
) -> None:
    driver.able |= UPDATE_SIZE * able
    devices.add("other", SimulatedDisk(8))
    devices.add("disk", disk)
    mark = devices.mark("disk")
    disk.sectors, disk.content = SECTORS + 8, disk.content + bytes(4096)
    devices.resized("disk")
    device = driver.devices[1]
    assert device.params[7] == SECTORS + 8
    assert f"{device.mark:016x}" == mark
    assert (STOP in driver.calls) == (not able)


def test_an_old_driver_leaves_one_in_use_as_it_is(
    devices: UblkDevices, driver: Driver, disk: SimulatedDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices.add("disk", disk)

    def used(path: str) -> None:
        raise BusyError(path, ["mounted on /mnt"])

    with monkeypatch.context() as patch:
        patch.setattr("dmcopy.export.lasting.check_unused", used)
        disk.sectors += 8
        devices.resized("disk")
    assert driver.devices[0].params[7] == SECTORS
    assert STOP not in driver.calls
    disk.sectors -= 8


def test_an_exit_of_the_queue_is_seen(
    devices: UblkDevices, driver: Driver, reactor: Reactor, disk: SimulatedDisk
) -> None:
    """The driver may stop a device by itself: it is removed all the same."""
    devices.add("disk", disk)
    driver.command(0xC0207507, 0)
    until(reactor, lambda: driver.devices[0].ring is not None)
    devices.remove("disk")
    assert not driver.devices
