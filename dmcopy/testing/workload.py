"""Seeded histories of an origin and its snapshots, to be played on two engines and compared.

    for step in Workload(seed=7).steps():
        match step:
            case Burst(accesses): ...       # reads, writes, flushes, discards, in flight together
            case Load(device, table): ...   # and so on: the changes that a Mapper makes

The stack is always the same, and all of its devices exist from the start, empty:

    origin               snapshot-origin, or snapshot-merge while a snapshot is merged
    snap1 snap2 snap3    snapshots of it, or NOTHING
    low0                 what the origin is kept on
    low1 low2 low3       the COW devices, one for each snapshot; parts of them may fail for a while

Now and then a table is loaded read-only. Then writes to the device itself are to fail, while what
is above it, and its own targets, continue to write.

A table names a device as @origin, and the disks of at least DISK_SECTORS below as @disk0 to @disk3.
A workload knows nothing of what became of its steps: that is for the engines to agree on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from dmcopy.io.request import Op
from dmcopy.ondisk.exception_store import AreaLayout
from dmcopy.testing.steps import (
    Access,
    AwaitMerge,
    Burst,
    Load,
    Resume,
    Step,
    Suspend,
    Wipe,
)

DISK_SECTORS = 16384
SNAPSHOTS = (1, 2, 3)
NOTHING = "0 8 error"
LONGEST_CHUNK = 1024
READONLY = 0.15
"""How many of the tables are loaded read-only."""
MOST_CHUNKS = 160
"""Of the smallest chunks that an origin has: a reader of all of it reads that many bios."""


@dataclass
class HistorySnapshot:
    """A snapshot of the history. `sectors` of its COW; `tight`: it is made to fill up."""

    number: int
    store: str
    chunk: int
    sectors: int
    tight: bool
    features: str = ""

    @property
    def name(self) -> str:
        return f"snap{self.number}"

    @property
    def cow(self) -> str:
        return f"low{self.number}"


class Workload:
    """A history of `length` bursts and operations, the same for the same arguments.

    With `depth` 1 there is one request at a time, nothing happens while a merge runs, COWs fill up
    and devices fail: two engines should then agree on every byte of the COW devices. With more,
    up to `depth` requests are in flight, during merges too; COWs are large and nothing fails, and
    what should agree is the content of the devices and the set of exceptions.

    `discards_beside_errors`: nothing is discarded without it while a part of a disk fails. A table
    with an error line takes no discards on 6.1 (dm_table_supports_discards in dm-table.c); on 6.12
    and on ours it does (measured on both).
    """

    def __init__(
        self, seed: int, *, depth: int = 1, length: int = 20, discards_beside_errors: bool = True
    ) -> None:
        self.seed = seed
        self.depth = depth
        self.length = length
        self._rng = random.Random(f"{seed} {depth}")
        rng = self._rng
        self.chunk = 1 << rng.randint(0, 10)
        chunks = rng.randint(12, MOST_CHUNKS)
        tail = rng.choice((0, 0, rng.randrange(self.chunk)))
        self.sectors = min(self.chunk * chunks, DISK_SECTORS // 2 - self.chunk) + tail
        self.snapshots: dict[int, HistorySnapshot] = {}
        self._modes = random.Random(f"{seed} {depth} read-only")
        self._readonly: set[str] = set()
        self._suspended: set[str] = set()
        self._discards_beside_errors = discards_beside_errors
        self._failing = False
        self._merging = False

    def __repr__(self) -> str:
        return f"<Workload {self.seed}, {self.sectors} sectors, depth {self.depth}>"

    def steps(self) -> Iterator[Step]:
        """Yield the history; all devices are resumed at its end. Only once."""
        yield from self._start("low0", f"0 {self.sectors} linear @disk0 0")
        yield from self._start("origin", f"0 {self.sectors} snapshot-origin @low0")
        yield from self._add()
        for _ in range(self.length):
            yield from self._next()

    def _next(self) -> Iterator[Step]:
        rng = self._rng
        if rng.random() < 0.7:
            yield self._burst()
            return
        change = rng.choice((self._add, self._add, self._drop, self._reload, self._reopen,
                             self._pause, self._merge, self._fail))  # fmt: skip
        yield from change()

    # Tables

    def _load(self, device: str, table: str) -> Load:
        """Load a table, read-only or not. Nothing is sent to the device before it is resumed."""
        readonly = self._modes.random() < READONLY
        (self._readonly.add if readonly else self._readonly.discard)(device)
        return Load(device, table, readonly)

    def _start(self, device: str, table: str) -> Iterator[Step]:
        yield self._load(device, table)
        yield Suspend(device)
        yield Resume(device)

    def _around_origin(self, *steps: Step) -> Iterator[Step]:
        """Do something to the snapshots, which the origin must be suspended for."""
        yield Suspend("origin")
        yield from steps
        yield Resume("origin")

    def _table(self, one: HistorySnapshot) -> str:
        words = f"@low0 @{one.cow} {one.store} {one.chunk}{one.features}"
        return f"0 {self.sectors} snapshot {words}"

    def _add(self) -> Iterator[Step]:
        rng = self._rng
        free = [number for number in SNAPSHOTS if number not in self.snapshots]
        if not free:
            return
        larger = min(self.chunk << rng.choice((0, 0, 1, 2, 3)), LONGEST_CHUNK)
        one = HistorySnapshot(rng.choice(free), rng.choice(("P", "P", "PO", "N")), larger, 0, False)
        one.features = rng.choice(("", "", " 1 discard_zeroes_cow",
                                   " 2 discard_zeroes_cow discard_passdown_origin"))  # fmt: skip
        one.tight = self.depth == 1 and rng.random() < 0.3
        one.sectors = self._cow_sectors(one)
        self.snapshots[one.number] = one
        yield Wipe(f"disk{one.number}")
        yield from self._start(one.cow, f"0 {one.sectors} linear @disk{one.number} 0")
        yield from self._around_origin(
            self._load(one.name, self._table(one)), Suspend(one.name), Resume(one.name)
        )

    def _cow_sectors(self, one: HistorySnapshot) -> int:
        if not one.tight:
            return DISK_SECTORS
        per_area = AreaLayout(one.chunk).per_area
        few, edge = self._rng.randint(2, 9), 2 + per_area + self._rng.randint(-1, 1)
        chunks = self._rng.choice((few, edge))
        return min(chunks * one.chunk + self._rng.randrange(one.chunk), DISK_SECTORS)

    def _drop(self) -> Iterator[Step]:
        if self.snapshots:
            one = self.snapshots.pop(self._rng.choice(sorted(self.snapshots)))
            yield from self._around_origin(*self._start(one.name, NOTHING))

    def _reload(self) -> Iterator[Step]:
        """Hand a snapshot over to a new table: P and PO may change, the chunk size does not."""
        one = self._any()
        if one is not None:
            if one.store != "N":
                one.store = self._rng.choice(("P", "PO"))
            table = self._table(one)
            yield from self._around_origin(
                self._load(one.name, table), Suspend(one.name), Resume(one.name)
            )

    def _reopen(self) -> Iterator[Step]:
        """Let a snapshot go, and load it again from its store."""
        one = self._any()
        if one is not None:
            table = self._table(one)
            yield from self._around_origin(
                *self._start(one.name, NOTHING), *self._start(one.name, table)
            )

    def _pause(self) -> Iterator[Step]:
        """Suspend a device, and use the others meanwhile."""
        one = self._any()
        device = self._rng.choice(["origin"] if one is None else ["origin", one.name])
        yield Suspend(device)
        self._suspended.add(device)
        for _ in range(self._rng.randint(0, 2)):
            if self._devices():
                yield self._burst()
        self._suspended.clear()
        yield Resume(device)

    def _merge(self) -> Iterator[Step]:
        """Merge a snapshot into the origin, through which I/O continues."""
        ready = [one for one in self.snapshots.values() if one.store != "N" and not one.tight]
        if not ready:
            return
        one = self._rng.choice(ready)
        del self.snapshots[one.number]
        yield self._load("origin", self._table(one).replace(" snapshot ", " snapshot-merge "))
        yield Suspend(one.name)
        yield Suspend("origin")
        yield Resume("origin")
        yield from self._start(one.name, NOTHING)
        if self.depth > 1:
            self._merging = True
            for _ in range(self._rng.randint(0, 4)):
                yield self._burst()
                yield from self._around_origin()
            self._merging = False
        yield AwaitMerge("origin")
        yield from self._start("origin", f"0 {self.sectors} snapshot-origin @low0")

    def _fail(self) -> Iterator[Step]:
        """Let a part of a disk fail for a while: whole chunks, on which the engines agree."""
        if self.depth > 1:
            return
        one = self._any()
        if one is None or self._rng.random() < 0.3:
            disk, size, chunk = 0, self.sectors, self.chunk
        else:
            disk, size, chunk = one.number, one.sectors, one.chunk
        start = chunk * self._rng.choice((0, 0, 1, self._rng.randrange(-(-size // chunk))))
        count = chunk * self._rng.choice((1, 4, DISK_SECTORS))
        start = min(start, size - 1)
        end = min(start + count, size)
        parts = [(0, start, "linear"), (start, end, "error"), (end, size, "linear")]
        table = "\n".join(
            f"{low} {high - low} {target}" + (f" @disk{disk} {low}" if target == "linear" else "")
            for low, high, target in parts
            if low < high
        )
        yield from self._start(f"low{disk}", table)
        self._failing = True
        for _ in range(self._rng.randint(1, 4)):
            yield self._burst()
        self._failing = False
        yield from self._start(f"low{disk}", f"0 {size} linear @disk{disk} 0")

    # I/O

    def _any(self) -> HistorySnapshot | None:
        """Return one of the snapshots, if there are any."""
        return self._rng.choice(list(self.snapshots.values())) if self.snapshots else None

    def _devices(self) -> list[str]:
        names = ["origin", *(one.name for one in self.snapshots.values())]
        return [name for name in names if name not in self._suspended]

    def _burst(self) -> Burst:
        """Return requests that do not touch each other's sectors on the same device."""
        rng = self._rng
        found: list[Access] = []
        for _ in range(rng.randint(1, self.depth)):
            access = self._access()
            if access.op == Op.DISCARD:  # alone: what it does depends on what was copied out before
                if not found:
                    return Burst((access,))
                continue
            if not any(access.overlaps(other) for other in found):
                found.append(access)
        return Burst(tuple(found))

    def _access(self) -> Access:
        rng = self._rng
        device = rng.choice(self._devices())
        op = rng.choices((Op.WRITE, Op.READ, Op.FLUSH, Op.DISCARD), (70, 15, 5, 10))[0]
        if op == Op.DISCARD and not self._may_discard(device):
            op = Op.READ
        if op == Op.FLUSH:
            return Access(op, device)
        chunk, sector, count = self._range(device)
        if op == Op.DISCARD and sector % chunk:
            # One that begins within a chunk and leaves it would not be cut there by the kernel: it
            # runs into the chunk that happens to be next on the COW (measured on 6.1 and 6.12).
            count = min(count, chunk - sector % chunk)
        return Access(op, device, sector, count, rng.getrandbits(32))

    def _may_discard(self, device: str) -> bool:
        """Say whether all engines, each in its own time, would make the same of a discard."""
        if device in self._readonly:
            return False  # refused, but whether as read-only or as a discard differs
        if self._merging:
            # One that is passed down gets to the origin before or after what is merged into it.
            passing = "discard_passdown_origin"
            return not any(
                one.name == device and passing in one.features for one in self.snapshots.values()
            )
        return not self._failing or self._discards_beside_errors

    def _range(self, device: str) -> tuple[int, int, int]:
        """Return the chunk size, and a part of a chunk, a whole one, or what lies across some."""
        rng = self._rng
        snapshots = [one.chunk for one in self.snapshots.values() if one.name == device]
        chunk = snapshots[0] if snapshots else self.chunk
        # The low chunks more often, so that many are written to again.
        last = (self.sectors - 1) // chunk
        start = chunk * min(int(rng.expovariate(4) * (last + 1)), last)
        count = chunk
        match rng.randrange(4):
            case 0:
                start += rng.randrange(chunk)
                count = rng.randint(1, chunk)
            case 1:
                start += rng.randrange(chunk)
                count = rng.randint(1, 3 * chunk)
            case 2:
                count = chunk * rng.randint(1, 3)
        start = min(start, self.sectors - 1)
        return chunk, start, min(count, self.sectors - start)
