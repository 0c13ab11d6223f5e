"""Reads 4 KiB at random, one at a time, while a command runs; prints what it and they took.

    bystander READS DISK COMMAND...

`-` as the command: nothing runs. Prints JSON: the median and the 99th percentile in microseconds,
and the seconds that the command took. Started by `merge.bystander`.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import subprocess
import sys
import time

PAGE = 4096
PAUSE_SECONDS = 0.001


def main() -> None:
    """Read until the command has ended, or that many times where there is none."""
    count, disk, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    fd = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    pages = os.lseek(fd, 0, os.SEEK_END) // PAGE
    memory = mmap.mmap(-1, PAGE)
    rng = random.Random(3)
    took: list[float] = []
    begin = time.perf_counter()
    process = None if command == ["-"] else subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None if process else len(took) < count:
        start = time.perf_counter()
        os.preadv(fd, [memory], rng.randrange(pages) * PAGE)
        took.append(time.perf_counter() - start)
        time.sleep(PAUSE_SECONDS)
    seconds = time.perf_counter() - begin
    if process and process.returncode:
        raise SystemExit(process.returncode)
    took.sort()
    shown = {"p50": took[len(took) // 2] * 1e6, "p99": took[len(took) * 99 // 100] * 1e6}
    json.dump({**shown, "seconds": seconds, "cpu": 0.0}, sys.stdout)


if __name__ == "__main__":
    main()
