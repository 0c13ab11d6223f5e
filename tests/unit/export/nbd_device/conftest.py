"""A driver that is played, and disks in memory that are served by it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.export.nbd.devices import NbdDevices
from dmcopy.io import Reactor
from dmcopy.io.simulated import SimulatedDisk
from dmcopy.ledger import Ledger
from tests.unit.export.nbd_device.driver import Driver
from tests.unit.export.ublk.conftest import SECTORS, Patient


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver(tmp_path / "block")
    monkeypatch.setattr("dmcopy.io.nbd._BLOCKS", str(made.blocks))
    monkeypatch.setattr("dmcopy.io.nbd.NbdControl", lambda: made)
    monkeypatch.setattr("dmcopy.export.lasting.check_unused", lambda _path: None)
    return made


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    with Reactor(lambda poller: Patient(poller, 7), stacked=True) as made:
        yield made


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def disk() -> SimulatedDisk:
    made = SimulatedDisk(SECTORS)
    made.load(bytes(number % 251 for number in range(SECTORS << 9)))
    return made


@pytest.fixture
def devices(reactor: Reactor, ledger: Ledger, driver: Driver) -> Iterator[NbdDevices]:
    assert driver.devices == {}
    with NbdDevices(reactor, ledger=ledger, recoverable=True) as made:
        yield made
