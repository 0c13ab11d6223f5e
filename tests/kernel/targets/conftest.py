"""The same table on both engines, one after the other, on the same loop devices."""

from __future__ import annotations

import errno
import itertools
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dmcopy.block.loop import LoopDevice, attach, detach
from dmcopy.errors import DeviceError, UsageError
from dmcopy.io import Reactor, whole
from dmcopy.io.region import Device
from dmcopy.ledger import Ledger
from dmcopy.mapper.base import Mapper
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.userspace import UserMapper
from dmcopy.table import Table
from tests.kernel.snapshot.engines import open_anyway

SECTORS = 2048
SETTLE_SECONDS = 20.0


@dataclass
class Run:
    """What an engine made of a table: its outcomes, lines, and the disks afterwards."""

    outcomes: list[object]
    table: str
    status: str
    disks: dict[str, bytes]


class Running:
    """A device of one of the engines, with what a test does to it."""

    def __init__(self, mapper: Mapper, name: str, reactor: Reactor, device: Device) -> None:
        self.mapper = mapper
        self.name = name
        self.reactor = reactor
        self.device = device
        self.outcomes: list[object] = []

    def do(self, operation: Sequence[object]) -> None:
        """Do an operation, such as ('write', sector, count), and keep what became of it."""
        word, *rest = operation
        do: Callable[..., object] = getattr(self, str(word))
        try:
            self.outcomes.append(do(*rest))
        except UsageError:  # ours asks before: a read-only device is a mistake of the caller's
            assert self.mapper.info(self.name).readonly
            self.outcomes.append("EPERM")
        except DeviceError as error:
            self.outcomes.append(errno.errorcode[error.errno])

    def read(self, sector: int, count: int) -> bytes:
        return whole.read(self.reactor, self.device, sector, count)

    def write(self, sector: int, count: int) -> None:
        whole.write(self.reactor, self.device, sector, content(sector, count))

    def fua(self, sector: int, count: int) -> None:
        """A write with RWF_DSYNC, after which the kernel also flushes a block device."""
        whole.write(self.reactor, self.device, sector, content(sector, count), fua=True)
        if isinstance(self.mapper, UserMapper):
            self.flush()

    def flush(self) -> None:
        whole.flush(self.reactor, self.device)

    def discard(self, sector: int, count: int) -> None:
        whole.discard(self.reactor, self.device, sector, count)

    def zero(self, sector: int, count: int) -> None:
        whole.zero(self.reactor, self.device, sector, count)

    def message(self, *words: str) -> None:
        self.mapper.message(self.name, *words)

    @property
    def status(self) -> str:
        return "\n".join(map(str, self.mapper.status(self.name)))

    def settle(self, expected: str) -> str:
        """Return the status once it is as expected, or else what it is after a while."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while (status := self.status) != expected and time.monotonic() < deadline:
            self.reactor.step(0.02)
        return status


class Twins:
    """Loop devices a, b, c over files in memory, and both engines."""

    def __init__(self, folder: Path, ledger: Path, block_size: int = 512) -> None:
        self.files = {name: folder / name for name in "abc"}
        self.loops: dict[str, LoopDevice] = {}
        for name, file in self.files.items():
            file.write_bytes(bytes(SECTORS << 9))
            self.loops[name] = attach(file, sector_size=block_size)
        self.kernel = KernelMapper(ledger=Ledger(ledger))

    def fill(self, text: str) -> str:
        """Return `text` with A, B, C for the devices."""
        for name, loop in self.loops.items():
            text = text.replace(f" {name.upper()}", f" {loop.path}")
        return text

    def wipe(self) -> None:
        """Give the disks their first content, in place: the loop devices keep their sizes."""
        for seed, file in enumerate(self.files.values()):
            with file.open("r+b") as image:
                image.write(random.Random(seed).randbytes(SECTORS << 9))

    @contextmanager
    def user(self, text: str, *, readonly: bool = False) -> Iterator[Running]:
        """Run a table in userspace, on fresh disks."""
        self.wipe()
        with UserMapper() as mapper:
            mapper.create("twin", Table.parse(self.fill(text)), readonly=readonly)
            yield Running(mapper, "twin", mapper.reactor, mapper.open("twin"))

    @contextmanager
    def real(self, text: str, *, readonly: bool = False) -> Iterator[Running]:
        """Run a table on the kernel, on fresh disks."""
        self.wipe()
        name = f"dmcopy-twin-{next(_numbers)}"
        self.kernel.create(name, Table.parse(self.fill(text)), readonly=readonly)
        try:
            path = self.kernel.path(name)
            with Reactor("threads") as reactor, open_anyway(path) as device:
                yield Running(self.kernel, name, reactor, device)
        finally:
            self.kernel.remove(name)

    def disks(self) -> dict[str, bytes]:
        return {name: file.read_bytes() for name, file in self.files.items()}

    def run(
        self,
        text: str,
        operations: Sequence[Sequence[object]],
        status: str = "",
        *,
        readonly: bool = False,
    ) -> tuple[Run, Run]:
        """Do the same on both engines, one request at a time; return the kernel's and ours.

        `status`: what to wait for in the end, where something goes on behind the operations.
        """
        runs: list[Run] = []
        for start in (self.user, self.real):
            with start(text, readonly=readonly) as running:
                for operation in operations:
                    running.do(operation)
                last = running.settle(status) if status else running.status
                table = str(running.mapper.table(running.name).canonical())
            runs.append(Run(running.outcomes, table, last, self.disks()))
        ours, kernels = runs
        return kernels, ours


_numbers = itertools.count()


def content(sector: int, count: int) -> bytes:
    """Return what a test writes at a sector."""
    return random.Random(sector).randbytes(count << 9)


def _twins(block_size: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    folder = Path("/dev/shm") / f"dmcopy-twins-{os.getpid()}-{block_size}"
    folder.mkdir()
    made = Twins(folder, tmp_path_factory.mktemp("twins") / "ledger.jsonl", block_size)
    yield made
    for loop in made.loops.values():
        detach(loop)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    assert made.kernel.ledger.entries() == []


@pytest.fixture(scope="session")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    """The twins, over disks with blocks of 512 bytes."""
    yield from _twins(512, tmp_path_factory)


@pytest.fixture(scope="session")
def twins_4k(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    """The twins, over disks with blocks of 4096 bytes."""
    yield from _twins(4096, tmp_path_factory)


@pytest.fixture(scope="session")
def is_new(twins: Twins) -> bool:
    """Whether the kernel's targets are those of 6.12, not those of 6.1: flakey tells."""
    text = twins.fill("0 8 flakey A 0 0 9 1 error_reads")
    return twins.kernel.supports(Table.parse(text))
