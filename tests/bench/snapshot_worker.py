"""Writes to an origin that has a snapshot, here, and times itself. Started by `snapshot`.

Modes: `first` writes every chunk of the list for the first time, so that each is copied out;
`again` writes them when they were copied out already; `plain` writes through the same engine where
there is no snapshot.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import time
from array import array
from pathlib import Path

from dmcopy.io import IoRegion, Reactor
from dmcopy.io.region import Device
from dmcopy.io.request import Io, Memory, Op
from dmcopy.mapper.mapped import MappedDevice
from dmcopy.mapper.userspace import UserMapper
from dmcopy.table import Table
from dmcopy.units import PAGE_SECTORS, SECTOR_SHIFT


class Writer:
    """Keeps `depth` writes of one page in flight, each at the next sector of a list."""

    def __init__(self, reactor: Reactor, device: Device, sectors: list[int]) -> None:
        self._submit = reactor.submit
        self._device = device
        self._memory = Memory(1)
        self._extents = [(0, PAGE_SECTORS << SECTOR_SHIFT)]
        self._left = iter(sectors)
        self.running = 0
        self.failed = 0

    def start(self, depth: int) -> None:
        """Begin with the first writes."""
        for _ in range(depth):
            self.running += 1
            self._next()

    def is_done(self) -> bool:
        """Whether every write has ended."""
        return not self.running

    def _next(self) -> None:
        for sector in self._left:
            region = IoRegion(self._device, sector, PAGE_SECTORS)
            self._submit(Io(Op.WRITE, region, self._memory, self._extents, self._ended))
            return
        self.running -= 1

    def _ended(self, io: Io) -> None:
        if io.error:
            self.failed += 1
        self._next()


def run(args: argparse.Namespace) -> dict[str, float]:
    """Write the whole list and return seconds of wall clock and of processor time."""
    sectors = [offset >> SECTOR_SHIFT for offset in array("Q", args.offsets.read_bytes())]
    with (
        Reactor(args.io, inline=args.depth == 1, stacked=True) as reactor,
        UserMapper(reactor) as mapper,
    ):
        device = _build(mapper, args)
        if args.mode == "again":
            write_all(reactor, device, sectors, 16)
        gc.freeze()
        before = resource.getrusage(resource.RUSAGE_SELF)
        begin = time.perf_counter()
        write_all(reactor, device, sectors, args.depth)
        seconds = time.perf_counter() - begin
        after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"seconds": seconds, "cpu": cpu}


def _build(mapper: UserMapper, args: argparse.Namespace) -> MappedDevice:
    length = args.origin_sectors
    if args.mode == "plain":
        mapper.create("live", Table.parse(f"0 {length} linear {args.origin} 0"))
    else:
        words = f"{args.origin} {args.cow} P {args.chunk_size}"
        mapper.create("snap", Table.parse(f"0 {length} snapshot {words}"))
        mapper.create("live", Table.parse(f"0 {length} snapshot-origin {args.origin}"))
    return mapper.open("live")


def write_all(reactor: Reactor, device: Device, sectors: list[int], depth: int) -> None:
    """Write one page at every sector of the list, `depth` at a time."""
    writer = Writer(reactor, device, sectors)
    writer.start(depth)
    reactor.run_until(writer.is_done)
    if writer.failed:
        raise SystemExit(f"{writer.failed} of {len(sectors)} writes failed")


def main() -> None:
    """Parse, run, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=["first", "again", "plain"])
    parser.add_argument("--depth", type=int, required=True, help="writes in flight")
    parser.add_argument("--chunk-size", type=int, default=8, help="sectors")
    parser.add_argument("--origin-sectors", type=int, required=True)
    parser.add_argument("--io", help="force a back end")
    parser.add_argument("origin", type=Path)
    parser.add_argument("cow", type=Path)
    parser.add_argument("offsets", type=Path, help="file of u64, byte offsets")
    json.dump(run(parser.parse_args()), sys.stdout)


if __name__ == "__main__":
    main()
