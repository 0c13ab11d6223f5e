"""A driver that is played, and disks in memory that are served by it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.export.ublk.devices import UblkDevices
from dmcopy.io import Reactor
from dmcopy.ledger import Ledger
from tests.unit.export.lasting import disk, ledger, reactor
from tests.unit.export.ublk.driver import Driver, play

__all__ = ["disk", "ledger", "reactor"]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver(tmp_path)
    play(monkeypatch, made)
    monkeypatch.setattr("dmcopy.export.lasting.check_unused", lambda _path: None)
    monkeypatch.setattr("dmcopy.io.ublk.UblkControl", lambda: made)
    return made


@pytest.fixture
def devices(reactor: Reactor, ledger: Ledger, driver: Driver) -> Iterator[UblkDevices]:
    assert driver.devices == {}
    with UblkDevices(reactor, ledger=ledger, recoverable=True) as made:
        yield made
