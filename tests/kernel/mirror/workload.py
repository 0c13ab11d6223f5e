"""Seeded workloads on mirrors: what is done, as plain values, so that both engines do the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from dmcopy.ondisk.bitset import Bitset
from dmcopy.ondisk.mirror_log import MirrorLog

from .sides import ALWAYS, LEGS, LOG_SECTORS, SECTORS

READONLY = 0.2
"""How many of the tables are loaded read-only: writes are refused, and recovery goes on."""
FEATURES = ("", "1 handle_errors", "2 handle_errors keep_log")


class Step(NamedTuple):
    """One thing to do; then the engines are compared."""

    what: str
    words: tuple[Any, ...] = ()


class Workload:
    """A mirror's shape, what its disks hold at the beginning, and what is done to it."""

    def __init__(self, seed: int) -> None:
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
        self.faults: set[str] = set()
        self._modes = random.Random(f"{seed} read-only")
        self.readonly = self._modes.random() < READONLY

    def __str__(self) -> str:
        mode = ", read-only" if self.readonly else ""
        return f"workload {self.seed}{mode}: {self.table()}"

    def table(self) -> str:
        """Return the mirror's table, as it is now."""
        words = ["l"] if self.log == "disk" else []
        words += [str(self.region), *filter(None, [self.sync])]
        legs = " ".join(f"{leg} 0" for leg in self.order)
        text = f"0 {self.length} mirror {self.log} {len(words)} {' '.join(words)}"
        return f"{text} {len(self.order)} {legs} {self.features}".strip()

    def first_log(self) -> bytes:
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
        """Yield the steps."""
        for _ in range(count):
            kind = self.rng.choices(
                ("write", "read", "flush", "discard", "burst", "fault", "heal", "cycle", "reload"),
                (8, 4, 2, 1, 2, 4, 2, 2, 1),
            )[0]
            yield from getattr(self, f"_{kind}")()
        yield from self._heal()
        yield Step("cycle", (False,))

    def _range(self, longest: int = 64) -> tuple[int, int]:
        sector = self.rng.randrange(self.length)
        return sector, min(self.length - sector, self.rng.randrange(1, longest))

    def _write(self) -> Iterator[Step]:
        fua = self.rng.random() < 0.1
        yield Step("write", (*self._range(), self.rng.randrange(1 << 30), fua))

    def _read(self) -> Iterator[Step]:
        yield Step("read", self._range())

    def _flush(self) -> Iterator[Step]:
        yield Step("flush")

    def _discard(self) -> Iterator[Step]:
        if self.faults:  # whether a device that is partly bad takes any differs between kernels
            return
        yield Step("discard", self._range())

    def _burst(self) -> Iterator[Step]:
        """Writes side by side, to different places; only while nothing fails."""
        if self.faults:
            return
        starts = sorted(self.rng.sample(range(0, self.length, 16), min(5, -(-self.length // 16))))
        places = [
            (start, min(16, self.length - start), self.rng.randrange(1 << 30)) for start in starts
        ]
        yield Step("burst", tuple(places))

    def _fault(self) -> Iterator[Step]:
        rng = self.rng
        if len(self.faults) > 1:
            return
        disk = rng.choice([*self.order, *(["l"] if self.log == "disk" else [])])
        if disk in self.faults:
            return
        size = LOG_SECTORS if disk == "l" else SECTORS
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
        yield Step("fault", (disk, *lines))
        if disk in self.order and kind in ("error", "part") and rng.random() < 0.6:
            start = int(lines[1].split()[0]) if kind == "part" else rng.randrange(self.length)
            if start < self.length:
                yield Step("read", (start, min(8, self.length - start)))

    def _heal(self) -> Iterator[Step]:
        self.faults.clear()
        yield Step("heal")

    def _cycle(self) -> Iterator[Step]:
        yield Step("cycle", (self.rng.random() < 0.5,))

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
            yield Step("heal", ("l",))
        self.readonly = self._modes.random() < READONLY
        yield Step("reload", (self.table(), self.readonly, rng.random() < 0.3))


def _part(start: int, size: int) -> list[str]:
    count = min(64, size - start)
    end = start + count
    lines = [f"0 {start} linear @ 0", f"{start} {count} error"]
    return lines + ([f"{end} {size - end} linear @ {end}"] if end < size else [])
