"""What tests of single targets start from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dmcopy.io import Reactor
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.mapper.userspace import UserMapper
from dmcopy.table import Table


class Engine:
    """A userspace engine over simulated disks a, b, c."""

    def __init__(self) -> None:
        self.disks = {name: SimulatedDisk(256, name) for name in "abc"}
        reactor = Reactor(SimulatedBackend(7), stacked=True)
        self.mapper = UserMapper(reactor, open_device=self.open)

    def open(self, path: str, write: bool) -> SimulatedDisk:
        del write
        return self.disks[path]

    def make(self, name: str, text: str) -> None:
        self.mapper.create(name, Table.parse(text))


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    with made.mapper.reactor, made.mapper:
        yield made
