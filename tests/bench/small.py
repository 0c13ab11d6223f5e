"""Pieces of 4 KiB, one to one: kcopyd in its own process beside a C loop with the same list.

Neither interpreter start nor opening counts here: both sides time their own loop. dmcopy's holds
the client, its page pool, a job object and a callback for every piece.
"""

from __future__ import annotations

import functools
import json
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import pieces
from tests.bench.disks import Disks
from tests.bench.figures import Run, Table, Target, Unit
from tests.bench.limits import ring_argv
from tests.bench.process import BenchError, run
from tests.bench.rounds import Contender, measure
from tests.bench.settings import Settings

UNIT = Unit("pieces/s", "CPU us/piece")
C_RING = "C ring"
C_PLAIN = "C pread, pwrite"


@dataclass(frozen=True, slots=True)
class Variant:
    """One kind of list. `goal` is what dmcopy should reach, as a part of the C ring's speed.

    Both sides have `depth` requests in flight, each at first of one piece. Where pieces are
    neighbours, dmcopy's client is given more of them ahead, and pages for them: what waits side by
    side is what it can merge. The C ring knows its whole list and merges nothing.

    One at a time, a RAM disk's speed depends on whether the other processor sleeps when it is
    needed, and jumps between two values ten times apart: so `repeat` times as many rounds are run,
    each of a `share` of the pieces.
    """

    name: str
    title: str
    depth: int
    pages: int
    ahead: int
    neighbours: float
    goal: float
    share: float = 1.0
    repeat: int = 1


VARIANTS = (
    Variant("random", "random, 32 in flight", 32, 32, 32, 0.0, 0.95),
    Variant("neighbours", "half of them neighbours, 32 in flight", 32, 128, 256, 0.5, 1.0),
    Variant("single", "random, one at a time", 1, 1, 1, 0.0, 0.85, share=0.04, repeat=5),
)


def tables(settings: Settings, place: str) -> list[Table]:
    """Measure all variants at one place, on the same disks."""
    size = settings.size // 2
    with settings.disks(place, size, 1) as disks:
        return [_table(settings, place, disks, variant) for variant in VARIANTS]


def _table(settings: Settings, place: str, disks: Disks, variant: Variant) -> Table:
    title = f"4 KiB pieces, {variant.title}, {disks.place}"
    made = Table(f"{variant.name}-{place}", title, UNIT)
    wanted = 20_000 if settings.quick else 100_000
    count = int(min(wanted, disks.size // pieces.BLOCK // 2) * variant.share)
    listed = pieces.scattered(disks.size // pieces.BLOCK, count, neighbours=variant.neighbours)
    path = settings.scratch / f"{made.name}.pairs"
    path.write_bytes(listed.tobytes())
    contenders = [
        _contender(
            f"dmcopy {io}" if io else "dmcopy", _worker(disks, path, variant, io), disks, listed
        )
        for io in (None, *settings.engines)
    ]
    if settings.ring:
        call = functools.partial(
            ring_argv,
            settings.ring,
            disks.source,
            disks.dests,
            block=pieces.BLOCK,
            depth=variant.depth,
            count=count,
            pairs=path,
        )
        contenders.append(_contender(C_RING, call(), disks, listed))
        limits = [C_RING]
        if variant.depth == 1:
            # One at a time a ring is no limit: plain calls are often quicker.
            contenders.append(_contender(C_PLAIN, call(plain=True), disks, listed))
            limits.append(C_PLAIN)
        made.targets = (Target("of C's speed", "dmcopy", variant.goal, tuple(limits)),)
    return measure(made, contenders, disks, settings.rounds * variant.repeat)


def _worker(disks: Disks, pairs: Path, variant: Variant, io: str | None) -> list[str]:
    words = [sys.executable, "-m", "tests.bench.small_worker"]
    for option in ("depth", "pages", "ahead"):
        words += [f"--{option}", str(getattr(variant, option))]
    words += ["--io", io] if io else []
    return [*words, str(disks.source), str(disks.dests[0]), str(pairs)]


def _contender(name: str, argv: Sequence[str], disks: Disks, listed: array[int]) -> Contender:
    count = len(listed) // 2
    work = functools.partial(timed_inside, argv, count)
    return Contender(name, work, functools.partial(pieces.check, disks, listed))


def timed_inside(argv: Sequence[str], count: int) -> Run:
    """Run a command that times itself and prints seconds of wall clock and CPU as JSON."""
    finished = run(argv)
    try:
        report = json.loads(finished.stdout)
        seconds, cpu = float(report["seconds"]), float(report["cpu"])
    except (ValueError, LookupError, TypeError):
        raise BenchError(f"{argv[0]} printed no figures") from None
    # The machine's share is of the whole command; the loop is nearly all of it.
    machine = finished.machine / count * 1e6
    return Run(count / seconds, cpu / count * 1e6, machine, seconds)
