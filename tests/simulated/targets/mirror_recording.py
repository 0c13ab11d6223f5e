"""What a mirror did to its disks, event by event, and what any power cut would have left of it.

The engine runs once; every power cut is then worked out from the record, which takes a fraction of
a millisecond. A sector of a leg is known by its stamp: which sector it is, and which version of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from dmcopy.io.request import CopyIo, Io, Op, Request
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.ondisk.mirror_log import MAGIC, OFFSET

VERSIONS = 1 << 20
GARBAGE = VERSIONS - 1
"""The version of what a leg holds that was never in sync."""


def stamp(sector: int, version: int) -> bytes:
    """Return a sector's content."""
    return (sector * VERSIONS + version).to_bytes(8, "little") * 64


def versions(data: bytes | bytearray | memoryview) -> tuple[int, ...]:
    """Return the stamps of whole sectors, as sector * VERSIONS + version."""
    return tuple(
        int.from_bytes(data[start : start + 8], "little") for start in range(0, len(data), 512)
    )


@dataclass
class Write:
    """A write on its way to a disk; `values` are stamps, or for the log the bytes of sectors."""

    disk: int
    sector: int
    values: tuple[Any, ...]
    fua: bool


Event = tuple[str, Any]
"""submitted: Write; performed, failed: Write; flushed: (disk, number of writes covered);
sent: (sector, version); floor: {sector: version}; trusted: the number of a leg, or None."""


class Recorder(SimulatedBackend):
    """A `SimulatedBackend` that writes down what reaches the disks, and when."""

    def __init__(self, seed: int, disks: list[SimulatedDisk], log: SimulatedDisk) -> None:
        super().__init__(seed)
        self.numbers = {id(disk): number for number, disk in enumerate([*disks, log])}
        self.events: list[Event] = []
        self.trusted: Callable[[], int | None] = lambda: 0
        self._was_trusted: int | None = 0
        self._log = log
        self._under_way: dict[int, Any] = {}

    def submit(self, request: Request) -> None:
        """Write a write down, and a flush with what it covers."""
        if isinstance(request, CopyIo):
            super().submit(request)
            return
        disk = request.device
        number = self.numbers[id(disk)]
        if request.op == Op.WRITE:
            assert request.memory is not None
            data = request.memory.read(request.extents)
            pieces = range(0, len(data), 512)
            values = tuple(data[n : n + 512] for n in pieces) if disk is self._log else ()
            write = Write(number, request.sector, values or versions(data), request.fua)
            self._under_way[id(request)] = write
            self.events.append(("submitted", write))
        elif request.op == Op.FLUSH:
            assert isinstance(disk, SimulatedDisk)
            self._under_way[id(request)] = (number, disk.writes)
        super().submit(request)

    def poll(self, timeout: float | None) -> list[Request]:
        """Write down what was performed."""
        found = super().poll(timeout)
        for request in found:
            if isinstance(request, Io) and id(request) in self._under_way:
                what = self._under_way.pop(id(request))
                if isinstance(what, Write):
                    self.events.append(("failed" if request.error else "performed", what))
                elif not request.error:
                    self.events.append(("flushed", what))
        self._note_trusted()
        return found

    def promise(self, versions: dict[int, int]) -> None:
        """Write down what is durable from now on, and who is to be asked for it."""
        self._note_trusted()
        self.events.append(("floor", versions))

    def _note_trusted(self) -> None:
        trusted = self.trusted()
        if trusted != self._was_trusted:
            self._was_trusted = trusted
            self.events.append(("trusted", trusted))


@dataclass
class _Disk:
    durable: list[Any]
    cache: list[Write] = field(default_factory=list)
    flushed: int = 0

    def settle(self, write: Write) -> None:
        self.durable[write.sector : write.sector + len(write.values)] = write.values

    def flush(self, upto: int) -> None:
        count = max(0, upto - self.flushed)
        for write in self.cache[:count]:
            self.settle(write)
        self.flushed += len(self.cache[:count])
        del self.cache[:count]


@dataclass
class Cut:
    """What a power cut left: the legs' stamps, the log's sectors, and what must be there.

    `floor` and `latest`: of each sector, the last version that was flushed, and that was sent.
    `trusted`: the leg to begin with: the mirror's default one; None when all have failed.
    """

    legs: list[list[int]]
    log: list[bytes]
    floor: list[int]
    latest: list[int]
    trusted: int | None

    def dirty(self, regions: int) -> set[int]:
        """Return the regions that the log does not call clean."""
        head = b"".join(self.log[:2])
        if int.from_bytes(head[:4], "little") != MAGIC:
            return set(range(regions))
        known = int.from_bytes(head[8:16], "little")
        bits = int.from_bytes(b"".join(self.log[OFFSET >> 9 :])[: -(-regions // 8)], "little")
        return {region for region in range(regions) if region >= known or not bits >> region & 1}


def replay(
    events: list[Event], legs: list[list[int]], log: list[bytes], rng: random.Random
) -> Iterator[Cut]:
    """Yield what a power cut after each event could have left; `legs` and `log`: the beginning."""
    disks = [_Disk(list(leg)) for leg in legs] + [_Disk(list(log))]
    in_flight: list[Write] = []
    floor = [value % VERSIONS for value in legs[0]]
    latest = list(floor)
    trusted: int | None = 0
    for kind, what in events:
        if kind == "submitted":
            in_flight.append(what)
        elif kind == "failed":
            in_flight.remove(what)
        elif kind == "performed":
            in_flight.remove(what)
            disks[what.disk].cache.append(what)
        elif kind == "flushed":
            disks[what[0]].flush(what[1])
        elif kind == "sent":
            latest[what[0]] = what[1]
            continue
        elif kind == "floor":
            for sector, version in what.items():
                floor[sector] = max(floor[sector], version)
        elif kind == "trusted":
            trusted = what
        images = [_cut(disk, number, in_flight, rng) for number, disk in enumerate(disks)]
        yield Cut(images[:-1], images[-1], floor, latest, trusted)


def _cut(disk: _Disk, number: int, in_flight: list[Write], rng: random.Random) -> list[Any]:
    """Return what a disk holds after a power cut: of what was not flushed, anything may be lost."""
    fate = rng.choice(("lose", "keep", "writes", "sectors"))
    image = list(disk.durable)
    ours = [write for write in in_flight if write.disk == number]
    if fate == "lose" and not any(write.fua for write in disk.cache):
        return image
    for place, write in enumerate([*disk.cache, *ours]):
        sure = write.fua and place < len(disk.cache)
        if sure or fate == "keep" or (fate == "writes" and rng.random() < 0.5):
            image[write.sector : write.sector + len(write.values)] = write.values
        elif fate == "sectors":
            for offset, value in enumerate(write.values):
                if rng.random() < 0.5:
                    image[write.sector + offset] = value
    return image
