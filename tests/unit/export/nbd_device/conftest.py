"""A driver that is played, and disks in memory that are served by it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.export.nbd.devices import NbdDevices
from dmcopy.io import Reactor
from dmcopy.ledger import Ledger
from tests.unit.export.lasting import disk, ledger, reactor
from tests.unit.export.nbd_device.driver import Driver

__all__ = ["disk", "ledger", "reactor"]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver(tmp_path / "block")
    monkeypatch.setattr("dmcopy.io.nbd._BLOCKS", str(made.blocks))
    monkeypatch.setattr("dmcopy.io.nbd.NbdControl", lambda: made)
    monkeypatch.setattr("dmcopy.export.lasting.check_unused", lambda _path: None)
    return made


@pytest.fixture
def devices(reactor: Reactor, ledger: Ledger, driver: Driver) -> Iterator[NbdDevices]:
    assert driver.devices == {}
    with NbdDevices(reactor, ledger=ledger, recoverable=True) as made:
        yield made
