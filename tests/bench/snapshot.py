"""Snapshots: the userspace engine beside a C loop that does the same I/O, and beside the kernel.

The engine runs in the worker's own process, on the origin and the COW directly: a server in front
of it would be measured otherwise.
"""

from __future__ import annotations

import functools
import random
import shutil
import sys
from array import array
from collections.abc import Callable
from pathlib import Path

from tests.bench.disks import Disks
from tests.bench.figures import Run, Table, Target, Unit
from tests.bench.limits import compile_ring
from tests.bench.merge import fill_store
from tests.bench.peers import moved
from tests.bench.process import ROOT, BenchError, run
from tests.bench.rounds import Contender, measure
from tests.bench.settings import Settings
from tests.bench.small import timed_inside

UNIT = Unit("writes/s", "CPU us/write")
BULK = Unit("MB/s", "CPU s/GiB")
PAGE = 4096
C_RING = "C ring"
GUEST_WRITES = 1500


def first_touch(settings: Settings, place: str) -> list[Table]:
    """4 KiB writes, each of which has its chunk copied out first, and writes that need not."""
    size = settings.size // 4
    ring = compile_ring(settings.scratch, "cowring")
    count = 5_000 if settings.quick else 20_000
    offsets = list(range(0, size, PAGE))
    random.Random(5).shuffle(offsets)
    path = settings.scratch / "offsets"
    path.write_bytes(array("Q", offsets[:count]).tobytes())
    with settings.disks(place, size, 1) as disks:
        # The COW is as large as the origin, and only a part of the origin is written.
        tables = [
            _first(settings, disks, ring, path, count, depth, goal)
            for depth, goal in ((16, 0.7), (1, 0.8))
        ]
        tables.append(_again(settings, disks, path, count))
    return tables


def _first(
    settings: Settings, disks: Disks, ring: Path, path: Path, count: int, depth: int, goal: float
) -> Table:
    title = f"first write to a 4 KiB chunk of an origin, {depth} in flight, {disks.place}"
    made = Table(f"first-{depth}-{disks.place}", title, UNIT)
    made.targets = (Target("of C's speed", "dmcopy", goal, (C_RING,)),)
    ours = _worker(disks, path, "first", depth)
    words = [str(PAGE), str(depth), str(count), str(path), str(disks.source), str(disks.dests[0])]
    contenders = [
        Contender("dmcopy", _with_new_cow(disks, functools.partial(timed_inside, ours, count))),
        Contender(C_RING, functools.partial(timed_inside, [str(ring), *words], count)),
    ]
    return measure(made, contenders, disks, settings.rounds)


def _again(settings: Settings, disks: Disks, path: Path, count: int) -> Table:
    title = f"4 KiB writes to an origin, 16 in flight, {disks.place}"
    made = Table(f"again-{disks.place}", title, UNIT)
    made.targets = (Target("of a write without a snapshot", "copied out", 0.8, ("no snapshot",)),)
    contenders = [
        Contender(name, _with_new_cow(disks, functools.partial(timed_inside, argv, count)))
        for name, argv in (
            ("copied out", _worker(disks, path, "again", 16)),
            ("no snapshot", _worker(disks, path, "plain", 16)),
        )
    ]
    return measure(made, contenders, disks, settings.rounds)


def _worker(disks: Disks, path: Path, mode: str, depth: int) -> list[str]:
    words = ["--depth", str(depth), "--origin-sectors", str(disks.size // 512)]
    files = [str(disks.source), str(disks.dests[0]), str(path)]
    return [sys.executable, "-m", "tests.bench.snapshot_worker", mode, *words, *files]


def _with_new_cow(disks: Disks, work: Callable[[], Run]) -> Callable[[], Run]:
    def on_new_cow() -> Run:
        with disks.dests[0].open("r+b") as cow:
            cow.write(bytes(PAGE))
        return work()

    return on_new_cow


def offline(settings: Settings, place: str) -> list[Table]:
    """`cow extract` and `cow merge` of a store that holds half of the origin, beside `copy`."""
    size = settings.size // 4
    with settings.disks(place, size, 3) as disks:
        origin, (cow, out, spare) = disks.source, disks.dests
        changed = fill_store(cow, size)
        extract = Table(f"extract-{disks.place}", f"cow extract, {disks.place}", BULK)
        extract.targets = (Target("of dmcopy copy", "cow extract", 0.9, ("dmcopy copy",)),)
        words = [*_dmcopy("cow", "extract"), "--origin", str(origin), "--cow", str(cow), str(out)]
        copy = [*_dmcopy("copy"), str(origin), str(out)]
        contenders = [
            Contender("cow extract", functools.partial(moved, words, size)),
            Contender("dmcopy copy", functools.partial(moved, copy, size)),
        ]
        tables = [measure(extract, contenders, disks, settings.rounds)]
        merge = Table(f"merge-{disks.place}", f"cow merge, {disks.place}", BULK)
        merge.targets = (Target("of dmcopy copy", "cow merge", 0.9, ("dmcopy copy",)),)
        words = [*_dmcopy("cow", "merge"), str(origin), str(cow)]
        copy = [*_dmcopy("copy"), str(cow), str(spare), "--count", str(changed // 512)]

        def merged() -> Run:
            fill_store(cow, size)
            return moved(words, changed)

        contenders = [
            Contender("cow merge", merged),
            Contender("dmcopy copy", functools.partial(moved, copy, changed)),
        ]
        return [*tables, measure(merge, contenders, disks, settings.rounds)]


def _dmcopy(*words: str) -> list[str]:
    return [sys.executable, "-m", "dmcopy", *words, "--progress=none"]


def guest(settings: Settings) -> Table:
    """Inside one guest: the userspace engine beside the kernel's dm-snapshot, on the same disks."""
    made = Table("guest", "first write to a 4 KiB chunk, 16 in flight, in a guest (TCG)", UNIT)
    count = GUEST_WRITES // 5 if settings.quick else GUEST_WRITES
    if shutil.which("qemu-system-x86_64") is None:
        raise BenchError("the guest needs qemu (./scripts/dmcopy vm run says more)")
    inner = [str(ROOT / ".venv/bin/python"), "-m", "tests.bench.snapshot_guest"]
    words = [*_dmcopy("vm", "run")[:-1], "--kernel", "6.12", "--memory", "2G", "--", *inner]
    finished = run([*words, str(count), str(settings.rounds)])
    made.rounds = {"dmcopy": [], "kernel": []}
    for line in finished.stdout.splitlines():
        name, seconds, cpu = line.split()
        value = Run(count / float(seconds), float(cpu) / count * 1e6, seconds=float(seconds))
        made.rounds[name].append(value)
    made.notes.append("the guest is emulated: only the ratio means something")
    return made
