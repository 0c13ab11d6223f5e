"""Disks in memory for the devices of a driver that is played, and what serves them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dmcopy.io import Reactor
from dmcopy.io.simulated import SimulatedDisk
from dmcopy.ledger import Ledger
from tests.unit.export.fuse.kernel import Simulated

SECTORS = 4096


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
