"""In a guest: the same writes through either engine, in turn. Started by `snapshot.guest`.

    snapshot_guest COUNT ROUNDS

Prints a line for each run: the engine, seconds of wall clock, seconds of processor time.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dmcopy.block import BlockDevice
from dmcopy.block.loop import loop_device
from dmcopy.io import Reactor
from dmcopy.io.region import Device
from dmcopy.mapper.base import Mapper
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.userspace import UserMapper
from dmcopy.table import Table
from tests.bench.snapshot_worker import write_all

ORIGIN_SECTORS = 1 << 16
DEPTH = 16


@contextlib.contextmanager
def disks() -> Iterator[tuple[str, str]]:
    """Make an origin and a COW: loop devices over files in RAM."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name, contextlib.ExitStack() as stack:
        paths = []
        for file in ("origin", "cow"):
            image = Path(name) / file
            with image.open("wb") as made:
                made.truncate(ORIGIN_SECTORS << 9)
            paths.append(stack.enter_context(loop_device(image)).path)
        yield paths[0], paths[1]


def timed(mapper: Mapper, reactor: Reactor, origin: str, cow: str, sectors: list[int]) -> str:
    """Write all sectors to an origin with a new snapshot; return what it took."""
    snapshot = Table.parse(f"0 {ORIGIN_SECTORS} snapshot {origin} {cow} P 8")
    live = Table.parse(f"0 {ORIGIN_SECTORS} snapshot-origin {origin}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(mapper.device("snap", snapshot))
        made = stack.enter_context(mapper.device("live", live))
        device: Device
        if isinstance(mapper, UserMapper):
            device = mapper.open(made.name)
        else:
            device = stack.enter_context(BlockDevice.open(made.path, write=True))
        before = resource.getrusage(resource.RUSAGE_SELF)
        begin = time.perf_counter()
        write_all(reactor, device, sectors, DEPTH)
        seconds = time.perf_counter() - begin
        after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return f"{seconds} {cpu}"


def main() -> None:
    """Run both engines in turn."""
    count, rounds = int(sys.argv[1]), int(sys.argv[2])
    sectors = list(range(0, ORIGIN_SECTORS, 8))
    random.Random(5).shuffle(sectors)
    with Reactor(stacked=True) as reactor, UserMapper(reactor) as user:
        for _ in range(rounds):
            for name, mapper in (("dmcopy", user), ("kernel", KernelMapper())):
                with disks() as (origin, cow):
                    took = timed(mapper, reactor, origin, cow, sectors[:count])
                print(name, took, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("LC_ALL", "C")
    main()
