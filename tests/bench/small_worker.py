"""Copies a list of pieces through kcopyd in this process, and times itself. Started by `small`.

Timed is what a user of kcopyd has to do: a client with its pages, for every piece two regions, a
job and a callback, and the end of the client. Opening the disks and reading the list is not timed,
nor is it in the C limit.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import resource
import sys
import time
from array import array
from pathlib import Path

from dmcopy.block import BlockDevice
from dmcopy.io import IoRegion, Reactor
from dmcopy.kcopyd import Client
from dmcopy.units import PAGE_SECTORS, SECTOR_SHIFT


class Feeder:
    """Keeps `ahead` pieces with the client: each that ends makes room for the next of the list."""

    def __init__(
        self, client: Client, source: BlockDevice, dest: BlockDevice, pairs: list[tuple[int, int]]
    ) -> None:
        self._copy = client.copy
        self._source = source
        self._dest = dest
        self._left = iter(pairs)
        self._running = 0
        self.failed = 0

    def start(self, ahead: int) -> None:
        """Begin with the first pieces."""
        for _ in range(ahead):
            self._running += 1
            self._next()

    def is_done(self) -> bool:
        """Whether every piece has been called back."""
        return not self._running

    def _next(self) -> None:
        for source, dest in self._left:
            self._copy(
                IoRegion(self._source, source, PAGE_SECTORS),
                [IoRegion(self._dest, dest, PAGE_SECTORS)],
                notify=self._copied,
            )
            return
        self._running -= 1

    def _copied(self, read_err: int, write_err: int, _context: object) -> None:
        if read_err or write_err:
            self.failed += 1
        self._next()


def run(args: argparse.Namespace) -> dict[str, float]:
    """Copy the whole list and return seconds of wall clock and of processor time."""
    offsets = array("Q", args.pairs.read_bytes())
    sectors = [offset >> SECTOR_SHIFT for offset in offsets]
    pairs = list(zip(sectors[::2], sectors[1::2], strict=True))
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(BlockDevice.open(str(args.source)))
        dest = stack.enter_context(BlockDevice.open(str(args.dest), write=True))
        # The list is ours, not kcopyd's: the collector need not walk it while the clock runs.
        gc.freeze()
        before = resource.getrusage(resource.RUSAGE_SELF)
        begin = time.perf_counter()
        with (
            Reactor(args.io, inline=args.depth == 1) as reactor,
            Client(args.pages, reactor=reactor, depth=args.depth) as client,
        ):
            feeder = Feeder(client, source, dest, pairs)
            feeder.start(args.ahead)
            reactor.run_until(feeder.is_done)
        seconds = time.perf_counter() - begin
        after = resource.getrusage(resource.RUSAGE_SELF)
    if feeder.failed:
        raise SystemExit(f"{feeder.failed} of {len(pairs)} pieces failed")
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"seconds": seconds, "cpu": cpu}


def main() -> None:
    """Parse, run, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, required=True, help="pages of the client")
    parser.add_argument("--depth", type=int, required=True, help="requests in flight")
    parser.add_argument("--ahead", type=int, required=True, help="pieces with the client together")
    parser.add_argument("--io", help="force a back end")
    parser.add_argument("source", type=Path)
    parser.add_argument("dest", type=Path)
    parser.add_argument("pairs", type=Path, help="file of pairs of u64, byte offsets")
    json.dump(run(parser.parse_args()), sys.stdout)


if __name__ == "__main__":
    main()
