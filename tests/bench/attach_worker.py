"""Serves a device, here, and times itself: `python -m tests.bench.attach_worker FRONT DISK`.

Started by `export`.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time

from dmcopy.block import BlockDevice
from dmcopy.export.base import Place, find
from dmcopy.io import Reactor

TIMES = 5


def main(front: str, disk: str) -> None:
    """Serve it some times anew; print the seconds that the median took as JSON."""
    with (
        tempfile.TemporaryDirectory(prefix="dmcopy-bench-") as folder,
        Reactor(stacked=True) as reactor,
        BlockDevice.open(disk) as device,
    ):
        place = Place(socket=f"{folder}/socket") if front == "nbd" else Place()
        took = []
        for number in range(TIMES):
            begin = time.perf_counter()
            with find(front)(reactor, place) as served:
                served.add(f"bench-{os.getpid()}-{number}", device)
                took.append(time.perf_counter() - begin)
    json.dump({"seconds": statistics.median(took), "cpu": time.process_time()}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
