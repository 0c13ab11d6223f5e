"""In a guest: the same resync through either engine, in turn. Started by `mirror.guest`.

    mirror_guest MIB ROUNDS REGION_SIZE...

Prints a line for each run: engine, region size, seconds. Timed from the resume to the event that
all is in sync, without dmsetup, whose start would be a good part of it.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

from dmcopy.block.loop import loop_device
from dmcopy.ledger import Ledger
from dmcopy.mapper.base import Mapper
from dmcopy.mapper.userspace import UserMapper
from tests.bench.mirror_worker import mirror_table, wait_in_sync
from tests.kernel.snapshot.ioctls import IoctlMapper


def resync(mapper: Mapper, region_size: int, sectors: int, legs: list[str]) -> float:
    """Return how long a new mirror takes to be in sync."""
    mapper.create("mirror")
    try:
        mapper.load("mirror", mirror_table(region_size, sectors, legs))
        begin = time.perf_counter()
        mapper.resume("mirror")
        wait_in_sync(mapper, "mirror")
        return time.perf_counter() - begin
    finally:
        mapper.remove("mirror")


def main() -> None:
    """Run both engines in turn."""
    size, rounds, *region_sizes = map(int, sys.argv[1:])
    content = random.Random(size).randbytes(1 << 20) * size
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name, ExitStack() as stack:
        images = Path(name) / "one", Path(name) / "other"
        images[0].write_bytes(content)
        images[1].write_bytes(bytes(len(content)))
        legs = [stack.enter_context(loop_device(image)).path for image in images]
        user = stack.enter_context(UserMapper())
        kernel = stack.enter_context(closing(IoctlMapper(Ledger(Path(name) / "ledger.jsonl"))))
        for _ in range(rounds):
            for region_size in region_sizes:
                for engine, mapper in (("dmcopy", user), ("kernel", kernel)):
                    with images[1].open("r+b") as other:
                        other.write(bytes(len(content)))
                    took = resync(mapper, region_size, len(content) >> 9, legs)
                    assert images[1].read_bytes() == content, f"{engine}: the legs differ"
                    print(engine, region_size, took, flush=True)


if __name__ == "__main__":
    main()
