"""A driver that is played, and disks in memory that are served by it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dmcopy.export.ublk.devices import UblkDevices
from dmcopy.io import Reactor
from dmcopy.io.simulated import SimulatedDisk
from dmcopy.ledger import Ledger
from tests.unit.export.fuse.kernel import Simulated
from tests.unit.export.ublk.driver import Driver, play

SECTORS = 4096


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver(tmp_path)
    play(monkeypatch, made)
    monkeypatch.setattr("dmcopy.export.lasting.check_unused", lambda _path: None)
    monkeypatch.setattr("dmcopy.io.ublk.UblkControl", lambda: made)
    return made


class Patient(Simulated):
    """Disks in memory beside threads: what these do is waited for, while no disk does anything."""

    def poll(self, timeout: float | None) -> list[Any]:
        if not self._events:
            self._poller.wait(0.001)
            return []
        return super().poll(timeout)


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
def devices(reactor: Reactor, ledger: Ledger, driver: Driver) -> Iterator[UblkDevices]:
    assert driver.devices == {}
    with UblkDevices(reactor, ledger=ledger, recoverable=True) as made:
        yield made
