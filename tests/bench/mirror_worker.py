"""Brings a mirror in sync, in this process, and times itself. Started by `mirror`.

    mirror_worker REGION_SIZE LEG LEG [LOG]

Without a log the mirror is new and everything is copied; with one, what the log calls dirty. Prints
JSON: seconds and memory that opening took, seconds and processor time until all is in sync.
"""

from __future__ import annotations

import json
import resource
import sys
import time

from dmcopy.block import BlockDevice
from dmcopy.mapper.base import Mapper
from dmcopy.mapper.userspace import UserMapper
from dmcopy.status import MirrorStatus
from dmcopy.table import Table

DEADLINE = 300.0


def mirror_table(region_size: int, sectors: int, legs: list[str], log: str = "") -> Table:
    """Return the table of a mirror of two legs, with a log in memory or on `log`."""
    kept = f"disk 2 {log} {region_size}" if log else f"core 1 {region_size}"
    return Table.parse(f"0 {sectors} mirror {kept} 2 {legs[0]} 0 {legs[1]} 0 1 handle_errors")


def wait_in_sync(mapper: Mapper, name: str) -> None:
    """Wait as users do, for the event: the status would be made anew for each question.

    A new mirror has had no event yet, and its first one says that it is in sync.
    """
    if not _in_sync(mapper, name):
        mapper.wait(name, 0, timeout=DEADLINE)
        assert _in_sync(mapper, name)


def _in_sync(mapper: Mapper, name: str) -> bool:
    status = mapper.status(name)[0].status
    assert isinstance(status, MirrorStatus)
    return status.in_sync


def _memory_kib() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4


def run(region_size: int, legs: list[str], log: str) -> dict[str, float]:
    """Make the mirror and wait until it is in sync."""
    with BlockDevice.open(legs[0]) as leg:
        sectors = leg.sectors
    table = mirror_table(region_size, sectors, legs, log)
    with UserMapper() as mapper:
        memory = _memory_kib()
        before = resource.getrusage(resource.RUSAGE_SELF)
        begin = time.perf_counter()
        mapper.create("mirror", table)
        opened = time.perf_counter() - begin
        memory = _memory_kib() - memory
        wait_in_sync(mapper, "mirror")
        seconds = time.perf_counter() - begin
        after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"opened": opened, "memory_kib": memory, "seconds": seconds, "cpu": cpu}


if __name__ == "__main__":
    json.dump(run(int(sys.argv[1]), sys.argv[2:4], "".join(sys.argv[4:5])), sys.stdout)
