"""Plays a workload on an engine, and says what was seen."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from dmcopy.errors import DeviceError
from dmcopy.io.region import IoRegion
from dmcopy.io.request import Io, Memory, Op
from dmcopy.testing.workload import (
    NOTHING,
    SNAPSHOTS,
    Access,
    AwaitMerge,
    Burst,
    Load,
    Resume,
    Step,
    Suspend,
    Wipe,
    Workload,
)
from dmcopy.units import PAGE_SIZE

from .engines import DISKS, WAIT_SECONDS, Engine, pattern

TOPS = ("origin", *(f"snap{number}" for number in SNAPSHOTS))
LOWS = tuple(f"low{number}" for number in (0, *SNAPSHOTS))


@dataclass(frozen=True)
class View:
    """What an observer sees of a device."""

    status: str
    table: str
    events: int
    readonly: bool


class Player:
    """An engine with the stack of a workload: `reset` makes it new, `do` does a step."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._born: dict[str, int] = {}
        for name in (*LOWS, *TOPS):
            engine.create(name, NOTHING)

    def close(self) -> None:
        """Remove the devices."""
        for name in (*TOPS, *LOWS):
            self.engine.mapper.thaw(name)
        for name in TOPS:
            self.engine.swap(name, NOTHING)
        for name in (*TOPS, *LOWS):
            self.engine.remove(name)

    def reset(self, workload: Workload) -> None:
        """Begin again, with the same content on every engine."""
        for name in TOPS:
            self.engine.mapper.thaw(name)
            self.engine.swap(name, NOTHING)
        self.engine.wipe()
        self.engine.poke("A", 0, pattern(workload.seed, workload.sectors))
        for name in TOPS:
            self._born[name] = self.engine.events(name)

    def do(self, step: Step) -> list[object]:
        """Do a step; return what came of it: errors, and what was read."""
        engine, mapper = self.engine, self.engine.mapper
        try:
            match step:
                case Burst(accesses):
                    return self._perform(accesses)
                case Load(device, table, readonly):
                    engine.load(device, _on_disks(table), readonly=readonly)
                case Suspend(device):
                    mapper.suspend(device)
                case Resume(device):
                    mapper.resume(device)
                case Wipe(disk):
                    engine.poke(DISKS[int(disk[-1])], 0, bytes(512))
                case AwaitMerge(device):
                    engine.wait_merged(device)
        except DeviceError as error:
            return [error.errno]
        return []

    def look(self) -> dict[str, View]:
        """Return what is seen of every device at the top."""
        engine = self.engine
        found = {}
        for name, born in self._born.items():
            info = engine.mapper.info(name)
            view = View(engine.status(name), engine.table(name), info.events - born, info.readonly)
            found[name] = view
        return found

    def contents(self) -> dict[str, list[object]]:
        """Read every device that is not suspended; each is an errno and a checksum."""
        found: dict[str, list[object]] = {}
        if any(self.engine.mapper.info(name).suspended for name in LOWS):
            return found
        for name in TOPS:
            info, table = self.engine.mapper.info(name), self.engine.table(name)
            if not info.suspended and table != NOTHING:
                count = int(table.split()[1])
                found[name] = self._perform((Access(Op.READ, name, 0, count),))
        return found

    def _perform(self, accesses: tuple[Access, ...]) -> list[object]:
        """Have all of them in flight at once; return an errno and a checksum of each."""
        reactor = self.engine.reactor
        done: list[Io] = []
        requests = [self._request(access, done) for access in accesses]
        for request in requests:
            reactor.submit(request)
        reactor.run_until(lambda: len(done) == len(requests), WAIT_SECONDS, f"{accesses}")
        return list(_results(requests))

    def _request(self, access: Access, done: list[Io]) -> Io:
        region = IoRegion(self.engine.device(access.device), access.sector, access.count)
        if access.op not in (Op.READ, Op.WRITE):
            return Io(access.op, region, notify=done.append)
        size = access.count << 9
        memory = Memory(-(-size // PAGE_SIZE))
        if access.op == Op.WRITE:
            memory.fill([(0, size)], access.data)
        return Io(access.op, region, memory, [(0, size)], done.append)


def _results(requests: list[Io]) -> Iterator[object]:
    for request in requests:
        checksum = 0
        if request.memory is not None:
            if request.op == Op.READ and not request.error:
                checksum = zlib.crc32(request.memory.read(request.extents))
            request.memory.close()
        yield request.op.name, request.error, checksum


def _on_disks(table: str) -> str:
    """Call the disks what the engines call them."""
    for number, disk in enumerate(DISKS):
        table = table.replace(f"@disk{number} ", f"@{disk} ")
    return table
