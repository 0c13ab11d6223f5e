"""In a guest: the same merge by the kernel, by the userspace engine, and offline, in turn.

    merge_guest MIB ROUNDS RUN_CHUNKS...

Started by `merge.guest`. A store holds MIB of changed chunks of 4 KiB in runs of that many, in no
order. Prints a line for each run: who merged, chunks of a run, seconds. Timed from the resume until
the status says that all is merged, without dmsetup, whose start would be a good part of it;
offline from the opening to the end.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

from dmcopy.block.loop import loop_device
from dmcopy.cow.moving import make_mover
from dmcopy.cow.opening import opened_merge
from dmcopy.ledger import Ledger
from dmcopy.mapper.base import Mapper
from dmcopy.mapper.userspace import UserMapper
from dmcopy.status import SnapshotMergeStatus
from dmcopy.table import Table
from tests.bench.merge import fill_store
from tests.kernel.snapshot.ioctls import IoctlMapper

CHUNK_SIZE = 8
DEADLINE = 300.0


def live(mapper: Mapper, sectors: int, origin: str, cow: str) -> float:
    """Return how long snapshot-merge takes."""
    mapper.create("merge")
    try:
        words = f"0 {sectors} snapshot-merge {origin} {cow} P {CHUNK_SIZE}"
        mapper.load("merge", Table.parse(words))
        begin = time.perf_counter()
        mapper.resume("merge")
        while not _is_merged(mapper):
            if isinstance(mapper, UserMapper):
                mapper.reactor.run_until(lambda: _is_merged(mapper), DEADLINE, "the merge")
            else:
                time.sleep(0.002)
        return time.perf_counter() - begin
    finally:
        mapper.remove("merge")


def offline(origin: str, cow: str) -> float:
    """Return how long `cow merge` takes, without its start."""
    begin = time.perf_counter()
    with (
        opened_merge(origin, cow) as merge,
        make_mover(merge.origin.device, chunk_size=CHUNK_SIZE) as mover,
    ):
        merge.run(mover)
        assert merge.merged == merge.exceptions
    return time.perf_counter() - begin


def main() -> None:
    """Run all three in turn."""
    size, rounds, *run_chunks = map(int, sys.argv[1:])
    origin_bytes = 2 * size << 20
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name, ExitStack() as stack:
        images = [Path(name) / file for file in ("origin", "cow")]
        for image in images:
            with image.open("wb") as made:
                made.truncate(origin_bytes)
        origin, cow = (stack.enter_context(loop_device(image)).path for image in images)
        user = stack.enter_context(UserMapper())
        kernel = stack.enter_context(closing(IoctlMapper(Ledger(Path(name) / "ledger.jsonl"))))
        merged = dict[int, bytes]()
        for _ in range(rounds):
            for chunks in run_chunks:
                for who in ("offline", "dmcopy", "kernel"):
                    with images[0].open("r+b") as file:
                        file.write(bytes(origin_bytes))
                    fill_store(images[1], origin_bytes, chunks)
                    if who == "offline":
                        took = offline(origin, cow)
                    else:
                        mapper = user if who == "dmcopy" else kernel
                        took = live(mapper, origin_bytes >> 9, origin, cow)
                    content = images[0].read_bytes()
                    assert merged.setdefault(chunks, content) == content, f"{who} merged otherwise"
                    print(who, chunks, took, flush=True)


def _is_merged(mapper: Mapper) -> bool:
    status = mapper.status("merge")[0].status
    assert isinstance(status, SnapshotMergeStatus)
    assert not status.trouble, status
    return status.empty


if __name__ == "__main__":
    main()
