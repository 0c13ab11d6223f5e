"""The same table on both engines, one after the other, on disks with the same content."""

from __future__ import annotations

import contextlib
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from dmcopy.io.request import Op
from dmcopy.ledger import Ledger
from dmcopy.testing.compare import Harness, pair
from dmcopy.testing.steps import Access, Burst, Message, Step

SECTORS = 2048
SETTLE_SECONDS = 60.0
_OPS = {
    "read": Op.READ,
    "write": Op.WRITE,
    "fua": Op.WRITE,
    "flush": Op.FLUSH,
    "discard": Op.DISCARD,
    "zero": Op.WRITE_ZEROES,
}


@dataclass
class Run:
    """What an engine made of a table: its outcomes, lines, and the disks afterwards."""

    outcomes: list[object]
    table: str
    status: str
    disks: dict[str, bytes]


class Twins:
    """Both engines, each over loop devices of its own: A, B and C in tables. The device is dev."""

    def __init__(self, kernel: Harness, user: Harness) -> None:
        self.kernel = kernel
        self.user = user

    @contextlib.contextmanager
    def running(self, side: Harness, text: str, *, readonly: bool = False) -> Iterator[Harness]:
        """Run a table on one of them, on disks with their first content."""
        for seed, disk in enumerate(side.disks.sizes):
            side.disks.poke(disk, 0, random.Random(seed).randbytes(SECTORS << 9))
        side.create("dev", re.sub(r" ([ABC])(?!\S)", r" @\1", text), readonly=readonly)
        try:
            yield side
        finally:
            side.remove("dev")

    def run(
        self,
        text: str,
        operations: Sequence[Sequence[object]],
        status: str = "",
        *,
        readonly: bool = False,
    ) -> tuple[Run, Run]:
        """Do the same on both engines, one request at a time; return the kernel's and ours.

        `operations` are such as ('write', sector, count). `status`: what to wait for in the end,
        where something continues behind them.
        """
        runs: list[Run] = []
        for side in (self.user, self.kernel):
            with self.running(side, text, readonly=readonly):
                outcomes = [side.do(step(*operation)) for operation in operations]
                last = settle(side, status) if status else side.status("dev")
                table = side.plain(side.mapper.table(side.prefix + "dev").canonical())
            disks = {disk: side.disks.peek(disk) for disk in side.disks.sizes}
            runs.append(Run(outcomes, table, last, disks))
        ours, kernels = runs
        return kernels, ours


def settle(side: Harness, expected: str) -> str:
    """Return the status once it is as expected, or else what it is after a while."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (status := side.status("dev")) != expected and time.monotonic() < deadline:
        side.step(0.02)
    return status


def step(word: object, *rest: object) -> Step:
    """Return the step that an operation is."""
    if word == "message":
        return Message("dev", tuple(map(str, rest)))
    sector, count = (int(str(number)) for number in rest or (0, 0))
    return Burst((Access(_OPS[str(word)], "dev", sector, count, sector, word == "fua"),))


def content(sector: int, count: int) -> bytes:
    """Return what a test writes at a sector."""
    return Access(Op.WRITE, "dev", sector, count, sector).data


def _twins(block_size: int, notes: Path) -> Iterator[Twins]:
    ledger = Ledger(notes / "ledger.jsonl")
    disks = dict.fromkeys("ABC", SECTORS)
    with pair(disks, sector_size=block_size, ledger=ledger) as (kernel, user):
        yield Twins(kernel, user)
    assert ledger.entries() == []


@pytest.fixture(scope="session")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    """The twins, over disks with blocks of 512 bytes."""
    yield from _twins(512, tmp_path_factory.mktemp("twins"))


@pytest.fixture(scope="session")
def twins_4k(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    """The twins, over disks with blocks of 4096 bytes."""
    yield from _twins(4096, tmp_path_factory.mktemp("twins"))


@pytest.fixture(scope="session")
def is_new(twins: Twins) -> bool:
    """Whether the kernel's targets are those of 6.12, not those of 6.1: flakey tells."""
    text = "0 8 flakey @A 0 0 9 1 error_reads"
    return not twins.kernel.mapper.refusal(twins.kernel.parse(text))
