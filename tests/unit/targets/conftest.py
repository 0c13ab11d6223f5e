"""What tests of single targets start from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dmcopy.io import Reactor
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.mapper.userspace import UserMapper
from dmcopy.table import Table


class Engine:
    """A userspace engine over simulated disks a to d."""

    def __init__(self, disk_sectors: int) -> None:
        self.disks = {name: SimulatedDisk(disk_sectors, name) for name in "abcd"}
        reactor = Reactor(SimulatedBackend(7), stacked=True)
        self.mapper = UserMapper(reactor, open_device=self.open)

    def open(self, path: str, write: bool) -> SimulatedDisk:
        del write
        return self.disks[path]

    def make(self, name: str, text: str) -> None:
        self.mapper.create(name, Table.parse(text))

    def status(self, name: str) -> str:
        return str(self.mapper.status(name)[0].status)


@pytest.fixture
def disk_sectors() -> int:
    return 256


@pytest.fixture
def engine(disk_sectors: int) -> Iterator[Engine]:
    made = Engine(disk_sectors)
    with made.mapper.reactor, made.mapper:
        yield made
