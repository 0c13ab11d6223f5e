"""What tests of single targets start from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from dmcopy.closing import Closing
from dmcopy.errors import DeadlineError
from dmcopy.io import Reactor
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.mapper.userspace import UserMapper
from dmcopy.table import Table


class BareEngine(Closing):
    """A userspace engine over simulated disks, which tables call by their paths."""

    def __init__(
        self, *disks: SimulatedDisk, seed: int = 7, backend: SimulatedBackend | None = None
    ) -> None:
        self.disks = {disk.path: disk for disk in disks}
        self.reactor = Reactor(backend or SimulatedBackend(seed), stacked=True)
        self.mapper = UserMapper(self.reactor, open_device=self.open)

    def close(self) -> None:
        with self.reactor, self.mapper:
            pass

    def open(self, path: str, write: bool) -> SimulatedDisk:
        del write
        return self.disks[path]

    def settle(self) -> None:
        """Let everything happen that happens by itself."""
        with contextlib.suppress(DeadlineError):
            self.reactor.run_until(lambda: False, 1.0)


class Engine(BareEngine):
    """One whose devices are made and looked at by their names."""

    def make(self, name: str, text: str, *, readonly: bool = False) -> None:
        self.mapper.create(name, Table.parse(text), readonly=readonly)

    def status(self, name: str) -> str:
        return str(self.mapper.status(name)[0].status)


def four_disks(sectors: int) -> list[SimulatedDisk]:
    """Make the disks a to d."""
    return [SimulatedDisk(sectors, name) for name in "abcd"]


@pytest.fixture
def disk_sectors() -> int:
    return 256


@pytest.fixture
def engine(disk_sectors: int) -> Iterator[Engine]:
    with Engine(*four_disks(disk_sectors)) as made:
        yield made
