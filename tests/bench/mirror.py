"""Mirrors: a whole resync beside a copy, one after a crash, a huge one opened, one in a guest.

8 MiB of regions are recovered at a time, and one more: with larger ones eight requests of
1 MiB are in flight. The kernel recovers one region at a time, so there the size decides it.
"""

from __future__ import annotations

import functools
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dmcopy.ondisk.bitset import Bitset
from dmcopy.ondisk.mirror_log import MirrorLog, region_count
from tests.bench.figures import Run, Table, Target, Unit, spread
from tests.bench.peers import moved
from tests.bench.plot import Curve
from tests.bench.process import ROOT, BenchError, run
from tests.bench.rounds import Contender, measure, whole_copy_verified
from tests.bench.settings import Settings

UNIT = Unit("MB/s", "CPU s/GiB")
SECONDS = Unit("seconds", "CPU s", digits=2)
REGION_SIZES = (1024, 4096, 16384, 131072)
COPY = ("dmcopy copy",)
CRASH_REGION = 1024
SHARES = (0.0, 0.05, 0.25, 1.0)
TIB_SECTORS = 1 << 31
GUEST_MIB = 128
AXES = ("dirty regions, %", "seconds until in sync")


def resync(settings: Settings, place: str) -> Table:
    """A new mirror of two legs until it is in sync, whole commands timed."""
    size = settings.size // 2
    with settings.disks(place, size, 1) as disks:
        made = Table(f"resync-{place}", f"whole resync, {disks.place}", UNIT)
        made.targets = tuple(
            Target(
                f"of dmcopy copy, regions of {region_size} sectors", _name(region_size), 1.0, COPY
            )
            for region_size in REGION_SIZES
        )
        check = whole_copy_verified(disks)
        contenders = [
            Contender(
                _name(region_size),
                functools.partial(moved, [*_WORKER, str(region_size), *legs], size),
                check,
            )
            for region_size in REGION_SIZES
            for legs in [[str(disks.source), str(disks.dests[0])]]
        ]
        words = [sys.executable, "-m", "dmcopy", "copy", "--progress=none"]
        copy = [*words, str(disks.source), str(disks.dests[0])]
        contenders.append(Contender("dmcopy copy", functools.partial(moved, copy, size), check))
        return measure(made, contenders, disks, settings.rounds)


def after_crash(settings: Settings, place: str) -> list[Table]:
    """A mirror whose log calls a share of the regions dirty, at two sizes."""
    tables = []
    for size in (settings.size // 8, settings.size // 2):
        with settings.disks(place, size, 2) as disks:
            title = f"resync of a mirror of {size >> 20} MiB after a crash, {disks.place}"
            made = Table(f"crash-{size >> 20}-{place}", title, SECONDS)
            legs, log = [str(disks.source), str(disks.dests[0])], disks.dests[1]
            contenders = []
            for share in SHARES:
                argv = [*_WORKER, str(CRASH_REGION), *legs, str(log)]
                work = functools.partial(_timed, argv, log, size, share)
                contenders.append(Contender(_dirty(share), work))
            tables.append(measure(made, contenders, None, settings.rounds))
    return tables


def curves(tables: Sequence[Table]) -> list[Curve]:
    """Return the time of a resync against the share that is dirty, of the tables that are that."""
    found = []
    for table in tables:
        kind, _, rest = table.name.partition("-")
        if kind == "crash":
            size, place = rest.partition("-")[0], table.title.rpartition(", ")[2]
            spreads = {100 * share: spread(table.values(_dirty(share))) for share in SHARES}
            points = {share: one for share, one in spreads.items() if one is not None}
            found.append(Curve(place, f"{size} MiB", points))
    return found


def opening(settings: Settings) -> list[Table]:
    """A mirror of 1 TiB with regions of 512 KiB, all clean: time and memory to open it."""
    seconds = Table("open", "opening a mirror of 1 TiB, 2 million regions", SECONDS)
    seconds.targets = (Target("seconds", "dmcopy", 1.0, at_most=True),)
    memory = Table("open-memory", "memory of a mirror of 1 TiB", Unit("MiB", "CPU s", digits=1))
    memory.targets = (Target("MiB of growth", "dmcopy", 64.0, at_most=True),)
    with tempfile.TemporaryDirectory(prefix="dmcopy-bench-", dir=settings.directory) as name:
        paths = [Path(name) / file for file in ("one", "other", "log")]
        for path in paths[:2]:
            with path.open("wb") as file:
                file.truncate(TIB_SECTORS << 9)
        paths[2].write_bytes(_log(TIB_SECTORS, CRASH_REGION, 0.0).ljust(1 << 20, b"\0"))
        argv = [*_WORKER, str(CRASH_REGION), *map(str, paths)]
        reports = [json.loads(run(argv).stdout) for _ in range(settings.rounds)]
    seconds.rounds = {"dmcopy": [Run(one["opened"], one["cpu"]) for one in reports]}
    memory.rounds = {"dmcopy": [Run(one["memory_kib"] / 1024, one["cpu"]) for one in reports]}
    return [seconds, memory]


def guest(settings: Settings) -> Table:
    """Inside one guest: the userspace engine beside the kernel's dm-mirror, on the same disks."""
    made = Table("guest", f"whole resync of {GUEST_MIB} MiB in a guest (TCG)", UNIT)
    if shutil.which("qemu-system-x86_64") is None:
        raise BenchError("the guest needs qemu (./scripts/dmcopy vm run says more)")
    inner = [str(ROOT / ".venv/bin/python"), "-m", "tests.bench.mirror_guest"]
    words = [sys.executable, "-m", "dmcopy", "vm", "run", "--kernel", "6.12", "--memory", "2G"]
    sizes = [str(size) for size in REGION_SIZES]
    finished = run([*words, "--", *inner, str(GUEST_MIB), str(settings.rounds), *sizes])
    made.targets = tuple(
        Target(
            f"of the kernel's own, regions of {size} sectors", f"dmcopy, {size}", 1.0,
            (f"kernel, {size}",),
        )
        for size in sizes
    )  # fmt: skip
    for line in finished.stdout.splitlines():
        engine, size, seconds = line.split()
        rate = (GUEST_MIB << 20) / 1e6 / float(seconds)
        made.rounds.setdefault(f"{engine}, {size}", []).append(Run(rate, seconds=float(seconds)))
    made.notes.append("the guest is emulated: only the ratios mean something")
    return made


_WORKER = [sys.executable, "-m", "tests.bench.mirror_worker"]


def _name(region_size: int) -> str:
    return f"mirror, regions of {region_size} sectors"


def _dirty(share: float) -> str:
    return f"{share:.0%} dirty"


def _timed(argv: list[str], log: Path, size: int, share: float) -> Run:
    with log.open("r+b") as file:
        file.write(_log(size >> 9, CRASH_REGION, share))
    finished = run(argv)
    report = json.loads(finished.stdout)
    return Run(report["seconds"], report["cpu"], finished.machine, report["seconds"])


def _log(sectors: int, region_size: int, dirty: float) -> bytes:
    """Return a log in which a share of the regions, chosen at random, is dirty."""
    regions = region_count(sectors, region_size)
    clean = Bitset(regions)
    clean.fill(0, regions, True)
    for region in random.Random(3).sample(range(regions), int(regions * dirty)):
        clean[region] = False
    return MirrorLog(clean).build()
