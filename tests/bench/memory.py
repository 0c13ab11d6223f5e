"""What a long copy needs in memory: the process's peak, above what importing dmcopy costs."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tests.bench import peers
from tests.bench.figures import Run, Table, Target, Unit
from tests.bench.process import BenchError, run
from tests.bench.rounds import Contender, measure
from tests.bench.settings import Settings

UNIT = Unit("MiB", "CPU s/GiB", digits=1)
PAGES = 64


def table(settings: Settings) -> Table:
    """Copy a sparse file of 8 GiB through 64 pages into another file."""
    size = peers.GIB if settings.quick else 8 * peers.GIB
    made = Table("memory", f"peak memory above the import, {size >> 30} GiB, {PAGES} pages", UNIT)
    made.targets = (Target("MiB of growth", "dmcopy", 32.0, at_most=True),)
    with tempfile.TemporaryDirectory(prefix="dmcopy-bench-", dir=settings.directory) as name:
        source, dest = Path(name) / "source", Path(name) / "dest"
        for path in (source, dest):
            path.touch(0o600)
        # Growing is all that happens to the source: it stays a hole, and reads as zeroes.
        with source.open("r+b") as file:
            file.truncate(size)
        with dest.open("r+b") as file:
            file.truncate(size)

        def work() -> Run:
            return _grown(source, dest, size)

        # One round is enough: the peak is the same in every round.
        return measure(made, [Contender("dmcopy", work)], None, 1)


def _grown(source: Path, dest: Path, size: int) -> Run:
    words = ["copy", str(source), str(dest), "--pages", str(PAGES)]
    finished = run([sys.executable, "-m", "tests.bench.memory_worker", *words])
    try:
        report = json.loads(finished.stdout.splitlines()[-1])
        grown = (report["peak_kib"] - report["imported_kib"]) / 1024
    except (ValueError, LookupError):
        raise BenchError("the memory worker printed no figures") from None
    gib = size / peers.GIB
    return Run(grown, finished.cpu / gib, finished.machine / gib, finished.seconds)
