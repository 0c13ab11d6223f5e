"""Merges: beside the kernel's in one guest, and what one costs a reader beside it."""

from __future__ import annotations

import functools
import json
import random
import shutil
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from dmcopy.ondisk.exception_store import VERSION, AreaLayout, StoreHeader
from tests.bench.disks import Disks, settle
from tests.bench.figures import Run, Table, Target, Unit
from tests.bench.process import ROOT, BenchError, run
from tests.bench.rounds import Contender, measure
from tests.bench.settings import Settings

PAGE = 4096
RUN_CHUNKS = 64
GUEST_MIB = 8
KINDS = {"random chunks of 4 KiB": 1, "runs of 64 KiB": 16, "one run": GUEST_MIB << 8}
MICROSECONDS = Unit("us", "CPU s")
LIMIT = 100_000_000


def fill_store(cow: Path, origin_bytes: int, run_chunks: int = RUN_CHUNKS) -> int:
    """Write a store of half the origin's 4 KiB chunks, in runs; return their size in bytes."""
    layout = AreaLayout(8)
    runs = list(range(0, origin_bytes // PAGE // 2 * 2, run_chunks))
    random.Random(9).shuffle(runs)
    wanted = origin_bytes // PAGE // 2
    olds = [run + place for run in runs for place in range(run_chunks)][:wanted]
    new, pairs = layout.first_data, []
    for old in olds:
        pairs.append((old, new))
        new = layout.after(new)
    with cow.open("r+b") as file:
        file.write(StoreHeader(True, VERSION, 8).build().ljust(PAGE, b"\0"))
        for area in range(len(pairs) // layout.per_area + 1):
            entries = pairs[area * layout.per_area : (area + 1) * layout.per_area]
            file.seek(layout.area_location(area) * PAGE)
            file.write(b"".join(struct.pack("<2Q", *pair) for pair in entries).ljust(PAGE, b"\0"))
    settle([cow])  # else it is the merge that writes out these pages, and not a copy
    return len(olds) * PAGE


def guest(settings: Settings) -> list[Table]:
    """Inside one guest: both engines' snapshot-merge and `cow merge`, on the same disks."""
    if shutil.which("qemu-system-x86_64") is None:
        raise BenchError("the guest needs qemu (./scripts/dmcopy vm run says more)")
    inner = [str(ROOT / ".venv/bin/python"), "-m", "tests.bench.merge_guest"]
    words = [sys.executable, "-m", "dmcopy", "vm", "run", "--kernel", "6.12", "--memory", "2G"]
    chunks = [str(count) for count in KINDS.values()]
    rounds = 1 if settings.quick else settings.rounds
    finished = run([*words, "--", *inner, str(GUEST_MIB), str(rounds), *chunks])
    tables = []
    for kind, count in KINDS.items():
        made = Table(f"merge-guest-{count}", f"merge of {kind} in a guest (TCG)", Unit("MB/s", ""))
        made.rounds = {"dmcopy": [], "cow merge": [], "kernel": []}
        made.targets = tuple(
            Target("of the kernel's speed", name, 5.0, ("kernel",))
            for name in ("dmcopy", "cow merge")
        )
        for line in finished.stdout.splitlines():
            who, run_chunks, seconds = line.split()
            if int(run_chunks) == count:
                rate = (GUEST_MIB << 20) / 1e6 / float(seconds)
                name = "cow merge" if who == "offline" else who
                made.rounds[name].append(Run(rate, seconds=float(seconds)))
        made.notes.append("the guest is emulated: only the ratios mean something")
        tables.append(made)
    return tables


def bystander(settings: Settings, place: str) -> list[Table]:
    """Reads of 4 KiB from the origin, one at a time, beside a merge; and beside a copy."""
    size = settings.size // 4
    with settings.disks(place, size, 2) as disks:
        origin, (cow, spare) = disks.source, disks.dests
        dmcopy = [sys.executable, "-m", "dmcopy"]
        merge = [*dmcopy, "cow", "merge", str(origin), str(cow), "--progress=none"]
        copy = [*dmcopy, "copy", str(origin), str(spare), "--progress=none"]
        kinds: dict[str, Sequence[str]] = {
            "nothing beside it": ["-"],
            "cow merge": merge,
            f"cow merge --limit {LIMIT // 1_000_000}M": [*merge, "--limit", f"{LIMIT}B"],
            "copy": copy,
        }
        reports: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
        title = f"reads of 4 KiB beside a merge, {disks.place}"
        made = Table(f"bystander-{place}", f"{title}, the median one", MICROSECONDS)
        slow = Table(f"bystander-99-{place}", f"{title}, 99 % are quicker", MICROSECONDS)
        contenders = [
            Contender(name, functools.partial(_beside, disks, size, words, reports[name]))
            for name, words in kinds.items()
        ]
        measure(made, contenders, disks, settings.rounds)
        slow.rounds = {name: [Run(one["p99"]) for one in found] for name, found in reports.items()}
        return [made, slow]


def _beside(disks: Disks, size: int, words: Sequence[str], reports: list[dict[str, float]]) -> Run:
    fill_store(disks.dests[0], size, 1)
    argv = [sys.executable, "-m", "tests.bench.bystander", "500", str(disks.source), *words]
    report = json.loads(run(argv).stdout)
    reports.append(report)
    return Run(report["p50"], seconds=report["seconds"])
