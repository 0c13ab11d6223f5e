"""Seeded workloads on a mirror, to be played on two engines and compared.

The mirror is called m. Its legs a to d, and the device l of its log, are linear devices over the
disks disk-a to disk-d and disk-l, of which parts fail or are slow for a while: `DISKS` has the
sizes, `start` yields the steps that make them all, and `fill` gives the disks their first content.

With faults, requests are held by a mirror that handles errors until it is suspended, so a player
of the workload must not wait for each; without them `compare.Comparison` plays it as it is.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dmcopy.io.request import Op
from dmcopy.ondisk.bitset import Bitset
from dmcopy.ondisk.mirror_log import MirrorLog
from dmcopy.testing.steps import Access, Burst, Cycle, Load, Resume, Step, Swap

if TYPE_CHECKING:
    from dmcopy.testing.harness import Harness

LEGS: Final = "abcd"
LOG: Final = "l"
SECTORS: Final = 2048
LOG_SECTORS: Final = 16
SIZES: Final = {**dict.fromkeys(LEGS, SECTORS), LOG: LOG_SECTORS}
DISKS: Final = {f"disk-{name}": sectors for name, sectors in SIZES.items()}
READONLY: Final = 0.2
"""How many of the tables are loaded read-only: writes are refused, and recovery continues."""
FEATURES: Final = ("", "1 handle_errors", "2 handle_errors keep_log")
ALWAYS: Final = 1 << 20
"""For how many seconds a flakey target is bad."""


@dataclass(frozen=True)
class Heal:
    """Make the devices under a mirror good again."""

    devices: tuple[str, ...]

    def do(self, harness: Harness) -> None:
        for device in self.devices:
            harness.swap(device, healthy(device), flush=False)


@dataclass(frozen=True)
class AwaitSync:
    """Wait until all regions of a mirror are in sync."""

    device: str = "m"

    def do(self, harness: Harness) -> None:
        def synced() -> bool:
            found = re.search(r"(?<!\S)(\d+)/(\d+)(?!\S)", harness.words(self.device))
            return found is not None and found[1] == found[2]

        harness.wait(synced, f"{self.device} to be in sync")


def healthy(device: str) -> str:
    """Return the table of a device under a mirror."""
    return f"0 {SIZES[device]} linear @disk-{device} 0"


def fault(device: str, *lines: str) -> Swap:
    """Return the step that puts other lines over a disk; `@` in them is the disk."""
    return Swap(device, "\n".join(lines).replace("@", f"@disk-{device}"), flush=False)


def fill(harness: Harness, seed: int, *, alike: bool, log: bytes) -> None:
    """Give the disks a content: the legs the same or each its own, and the log."""
    for leg in LEGS:
        piece = random.Random(seed if alike else f"{seed}{leg}").randbytes(1 << 16)
        harness.disks.poke(f"disk-{leg}", 0, piece * (SECTORS >> 7))
    harness.disks.poke(f"disk-{LOG}", 0, log.ljust(LOG_SECTORS << 9, b"\0"))


class MirrorWorkload:
    """A mirror's shape, the first content of its disks, and the steps that are played on it."""

    def __init__(self, seed: int, *, faults: bool = True) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.features = FEATURES[seed % 3]
        self.region = 1 << rng.randrange(1, 11)
        most = min(SECTORS, self.region * 30)  # each region costs a few flushes
        self.length = rng.randrange(max(self.region, most // 3), most)
        self.count = rng.choice((2, 2, 3, 4))
        self.log = rng.choice(("disk", "disk", "disk", "core"))
        self.sync = rng.choice((None, None, None, "sync", "nosync"))
        self.alike = self.sync == "nosync" or rng.random() < 0.3
        self.regions = -(-self.length // self.region)
        self.order = LEGS[: self.count]
        self.faults: set[str] = set()  # legs and log that fail
        self._with_faults = faults
        self._odd: set[str] = set()  # those that are slow, too
        self._modes = random.Random(f"{seed} read-only")
        self.readonly = self._modes.random() < READONLY
        self.first_log = self._first_log()

    def __str__(self) -> str:
        mode = ", read-only" if self.readonly else ""
        return f"workload {self.seed}{mode}: {self.table()}"

    def table(self) -> str:
        """Return the mirror's table, as it is now."""
        words = ["@l"] if self.log == "disk" else []
        words += [str(self.region), *filter(None, [self.sync])]
        legs = " ".join(f"@{leg} 0" for leg in self.order)
        text = f"0 {self.length} mirror {self.log} {len(words)} {' '.join(words)}"
        return f"{text} {len(self.order)} {legs} {self.features}".strip()

    def start(self) -> Iterator[Step]:
        """Yield the steps that make the mirror and the devices under it."""
        for name in SIZES:
            yield Load(name, healthy(name))
            yield Resume(name)
        yield Load("m", self.table(), self.readonly)
        yield Resume("m")

    def fill(self, harness: Harness) -> None:
        """Give the disks their first content."""
        fill(harness, self.seed, alike=self.alike, log=self.first_log)

    def _first_log(self) -> bytes:
        """Return what the log's device holds at the beginning: noise, nothing, or some log."""
        rng = self.rng
        kind = rng.choice(("noise", "nothing", "log", "log", "log"))
        if kind == "noise":
            return rng.randbytes(LOG_SECTORS << 9)
        if kind == "nothing":
            return b""
        # For as many regions as there are, for fewer or for more.
        regions = max(1, self.regions + rng.choice((0, 0, 0, -3, 5)))
        bits = Bitset(0).resized(regions, True)
        for _ in range(rng.randrange(4)):
            bits[rng.randrange(regions)] = False
        before = rng.randbytes(1024)
        data = bytearray(MirrorLog(bits).build(before))
        data[4] = rng.choice((2, 2, 2, 1, 3))
        return bytes(data)

    def steps(self, count: int) -> Iterator[Step]:
        for _ in range(count):
            kind = self.rng.choices(
                ("write", "read", "flush", "discard", "burst", "fault", "heal", "cycle", "reload"),
                (8, 4, 2, 1, 2, 4, 2, 2, 1),
            )[0]
            yield from getattr(self, f"_{kind}")()
        yield from self._heal()
        yield Cycle("m", flush=False)
        if not self._with_faults:
            yield AwaitSync()

    def _range(self, longest: int = 64) -> tuple[int, int]:
        sector = self.rng.randrange(self.length)
        return sector, min(self.length - sector, self.rng.randrange(1, longest))

    def _write(self) -> Iterator[Step]:
        fua = self.rng.random() < 0.1
        sector, count = self._range()
        seed = self.rng.randrange(1 << 30)
        yield Burst((Access(Op.WRITE, "m", sector, count, seed, fua),))

    def _read(self) -> Iterator[Step]:
        yield Burst((Access(Op.READ, "m", *self._range()),))

    def _flush(self) -> Iterator[Step]:
        yield Burst((Access(Op.FLUSH, "m"),))

    def _discard(self) -> Iterator[Step]:
        if self.faults:  # whether a device that is partly bad takes any differs between kernels
            return
        yield Burst((Access(Op.DISCARD, "m", *self._range()),))

    def _burst(self) -> Iterator[Step]:
        """Writes side by side, to different places; only while nothing fails."""
        if self.faults:
            return
        starts = sorted(self.rng.sample(range(0, self.length, 16), min(5, -(-self.length // 16))))
        writes = [
            Access(Op.WRITE, "m", start, min(16, self.length - start), self.rng.randrange(1 << 30))
            for start in starts
        ]
        yield Burst(tuple(writes))

    def _fault(self) -> Iterator[Step]:
        rng = self.rng
        if len(self.faults) > 1 or not self._with_faults:
            return
        disk = rng.choice([*self.order, *(["l"] if self.log == "disk" else [])])
        if disk in self.faults:
            return
        size = SIZES[disk]
        kinds = ["error", "delay"] if disk == "l" else ["error", "writes", "part", "delay"]
        kind = rng.choice(kinds)
        if not self.features and kind in ("error", "part") and disk != "l":
            # Without handle_errors a region that cannot be read is copied all the same, and what
            # the kernel copies then is not defined.
            kind = "writes"
        lines = {
            "error": [f"0 {size} error"],
            "writes": [f"0 {size} flakey @ 0 0 {ALWAYS} 1 error_writes"],
            "delay": [f"0 {size} delay @ 0 2"],
            "part": _part(rng.randrange(8, self.length + 8), size),
        }[kind]
        if kind != "delay":
            self.faults.add(disk)
        self._odd.add(disk)
        yield fault(disk, *lines)
        if disk in self.order and kind in ("error", "part") and rng.random() < 0.6:
            start = int(lines[1].split()[0]) if kind == "part" else rng.randrange(self.length)
            if start < self.length:
                yield Burst((Access(Op.READ, "m", start, min(8, self.length - start)),))

    def _heal(self) -> Iterator[Step]:
        self.faults.clear()
        if self._odd:
            yield Heal(tuple(sorted(self._odd)))
        self._odd.clear()

    def _cycle(self) -> Iterator[Step]:
        yield Cycle("m", flush=self.rng.random() < 0.5)

    def _reload(self) -> Iterator[Step]:
        """Another table: other legs, or other features, or another word for the log."""
        rng = self.rng
        self.order = "".join(rng.sample(self.order, len(self.order)))
        if len(self.order) > 2 and rng.random() < 0.3:
            self.order = self.order[:-1]
        self.sync = rng.choice((None, None, "sync", "nosync"))
        if self.features:
            self.features = rng.choice(FEATURES[1:])
        if "l" in self.faults:
            # A kernel that cannot read the log of a new table later writes a header that it never
            # set (disk_resume in dm-log.c).
            self.faults.discard("l")
            self._odd.discard("l")
            yield Heal(("l",))
        self.readonly = self._modes.random() < READONLY
        yield Swap("m", self.table(), self.readonly, flush=rng.random() < 0.3)


def _part(start: int, size: int) -> list[str]:
    count = min(64, size - start)
    end = start + count
    lines = [f"0 {start} linear @ 0", f"{start} {count} error"]
    return lines + ([f"{end} {size - end} linear @ {end}"] if end < size else [])
