"""In a guest: the same resync through either engine, in turn. Started by `mirror.guest`.

    mirror_guest MIB ROUNDS REGION_SIZE...

Prints a line for each run: engine, region size, seconds.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from pathlib import Path

from dmcopy.block.loop import loop_device
from dmcopy.mapper.base import Mapper
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.userspace import UserMapper
from tests.bench.mirror_worker import mirror_table, wait_in_sync


def resync(mapper: Mapper, region_size: int, sectors: int, legs: list[str]) -> float:
    """Return how long a new mirror takes to be in sync."""
    table = mirror_table(region_size, sectors, legs)
    begin = time.perf_counter()
    with mapper.device("mirror", table) as made:
        wait_in_sync(mapper, made.name)
        return time.perf_counter() - begin


def main() -> None:
    """Run both engines in turn."""
    size, rounds, *region_sizes = map(int, sys.argv[1:])
    sectors = size << 11
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name, contextlib.ExitStack() as stack:
        legs = []
        for file in ("one", "other"):
            image = Path(name) / file
            image.write_bytes(bytes(sectors << 9))
            legs.append(stack.enter_context(loop_device(image)).path)
        user = stack.enter_context(UserMapper())
        for _ in range(rounds):
            for region_size in region_sizes:
                for engine, mapper in (("dmcopy", user), ("kernel", KernelMapper())):
                    took = resync(mapper, region_size, sectors, legs)
                    print(engine, region_size, took, flush=True)


if __name__ == "__main__":
    main()
