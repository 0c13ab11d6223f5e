"""One seeded history of an origin and its snapshots, with a power cut at every step.

At each completion of I/O the disks are copied as a power cut would leave them, the snapshots are
loaded from the copies by a fresh engine, and must hold what was promised. The history itself goes
on undisturbed, so that thousands of cuts cost one run.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from dmcopy.io import IoRegion, Reactor, whole
from dmcopy.io.request import Io, Memory, Op, Request
from dmcopy.io.simulated import Outcome, SimulatedBackend, SimulatedDisk
from dmcopy.mapper.userspace import UserMapper
from dmcopy.status import SnapshotMergeStatus
from dmcopy.table import Table
from dmcopy.targets.origin import SnapshotModule
from dmcopy.units import PAGE_SECTORS, SECTOR_SIZE
from tests.simulated.instant import InstantBackend
from tests.simulated.targets.promise import Promise, ends, fill, numbers
from tests.simulated.targets.stores import Stores

SECTORS = 80
_ALL = range(SECTORS)
PATIENCE = 1000.0


@dataclass(eq=False)
class Snap:
    """A snapshot of the history: `promise` is what it must read as."""

    name: str
    chunk_size: int
    store: str
    promise: Promise

    @functools.cached_property
    def cow(self) -> str:
        return f"cow-{self.name}"

    @functools.cached_property
    def words(self) -> str:
        return f"origin {self.cow} {self.store} {self.chunk_size}"

    @functools.cached_property
    def table(self) -> Table:
        return _table(f"snapshot {self.words}")


class CuttingBackend(SimulatedBackend):
    """Calls `on_step` after every completion."""

    on_step: Callable[[], object] | None = None

    def poll(self, timeout: float | None) -> list[Request]:
        steps = self.steps
        found = super().poll(timeout)
        if self.steps != steps and self.on_step is not None:
            self.on_step()
        return found


class History:
    """A history by its seed. `play` returns how many power cuts it survived.

    `tight`: the COWs are too small, so that snapshots overflow and are lost on the way; the origin
    must not suffer, and every store must load. `switching`: the disks have their volatile caches
    switched off and on.
    """

    def __init__(self, seed: int, *, tight: bool = False, switching: bool = False) -> None:
        self.seed = seed
        self.tight = tight
        self.switching = switching
        self.rng = random.Random(seed)
        self.cuts = 0
        self._cut_rng = random.Random(~seed)
        self._versions = iter(range(1, 1 << 40))
        self.backend = CuttingBackend(seed)
        self.reactor = Reactor(self.backend, stacked=True)
        self._layers: dict[object, dict[int, int]] = {}
        self.stores = Stores()
        self._memory = Memory(SECTORS // PAGE_SECTORS)
        self._judge = Reactor(InstantBackend(), stacked=True)
        base = [next(self._versions) for _ in range(SECTORS)]
        self.disks = {"origin": SimulatedDisk(SECTORS, "origin")}
        self.disks["origin"].load(fill(base))
        self.origin = Promise(base)
        self.snaps: list[Snap] = []
        self.merging: Snap | None = None
        self.lost: list[Snap] = []
        self._flying: list[Io] = []
        self.mapper = self._engine(self.reactor, self.disks)

    def play(self, steps: int = 40) -> int:
        """Run it: random work with the power cut at each completion, then all is compared."""
        with self.reactor, self._judge, closing(self.stores), closing(self._memory):
            self._build()
            for _ in range(self.rng.choice((1, 1, 2))):
                self._take_snapshot()
            self.backend.on_step = self._cut
            for _ in range(steps):
                self._work()
                if self.rng.random() < 0.03:
                    self._reload()
                if self.rng.random() < 0.02 and self.merging is None and not self.tight:
                    self._start_merge()
            self._settle()
            self._compare()
            self.backend.on_step = None
            self.mapper.close()
        return self.cuts

    # What the history does

    def _take_snapshot(self) -> None:
        name = "ab"[len(self.snaps)]
        size = self.rng.choice((1, 1, 2, 4, 8))
        self._settle()
        snap = Snap(name, size, self.rng.choice(("P", "PO")), Promise(self.origin.now))
        room = self.rng.randrange(3 * size, SECTORS) if self.tight else SECTORS * 2 + 8 * size
        cow = SimulatedDisk(room, snap.cow)
        # A recycled COW: only its first sector is clean.
        cow.load(bytes(512) + self.rng.randbytes(cow.sectors * 512 - 512))
        self.disks[snap.cow] = cow
        self.snaps.append(snap)
        self.mapper.create(snap.name, snap.table)
        self.mapper.suspend("live")
        self.mapper.resume("live")
        self.disks["origin"].flush()

    def _work(self) -> None:
        for _ in range(self.rng.randint(1, 6)):
            if self.switching and self.rng.random() < 0.3:
                self._switch(self.rng.choice(list(self.disks.values())))
            device = self._some_device()
            kind = self.rng.random()
            if kind < 0.15:
                self._flush(*device)
            elif kind < 0.25:
                self._check(*device)
            else:
                self._write(*device)
        keep = self.rng.choice((0, 0, 3))
        self.reactor.run_until(lambda: len(self._flying) <= keep, PATIENCE, "writes")

    def _switch(self, disk: SimulatedDisk) -> None:
        """Switch a disk's cache on or off, be there I/O in flight; it is written out before."""
        disk.write_through = not disk.write_through
        if disk.write_through:
            disk.flush()

    def _some_device(self) -> tuple[str, Promise]:
        return self.rng.choice(self._owed())

    def _owed(self) -> list[tuple[str, Promise]]:
        """Return the devices that have promised anything."""
        gone = [*self.lost, self.merging]
        snaps = [(snap.name, snap.promise) for snap in self.snaps if snap not in gone]
        return [("live", self.origin), *snaps]

    def _lose(self, name: str) -> None:
        self.lost += [snap for snap in self.snaps if snap.name == name and snap not in self.lost]

    def _lose_the_invalid(self) -> None:
        if self.tight:
            for snap in self.snaps:
                if self.mapper.status(snap.name)[0].status.trouble:
                    self._lose(snap.name)

    def _write(self, name: str, promise: Promise) -> None:
        count = self.rng.choice((1, 2, 4, 8, 16))
        sector = self.rng.randrange(SECTORS - count + 1)
        if self.rng.random() < 0.4:
            sector -= sector % count
        if not promise.is_free(sector, count):
            return
        versions = [next(self._versions) for _ in range(count)]
        memory = Memory(2)
        memory.view[: count * 512] = fill(versions)

        def done(io: Io) -> None:
            self._flying.remove(io)
            if io.error and self.tight and name != "live":
                self._lose(name)
                return
            assert not io.error, f"a write to {name} failed"
            promise.finish(sector, versions)
            self._lose_the_invalid()

        promise.start(sector, versions)
        region = IoRegion(self.mapper.open(name), sector, count)
        self._submit(Io(Op.WRITE, region, memory, [(0, count * 512)], done))

    def _flush(self, name: str, promise: Promise) -> None:
        mark = promise.mark()

        def done(io: Io) -> None:
            self._flying.remove(io)
            assert not io.error
            promise.flushed(mark)

        self._submit(Io(Op.FLUSH, IoRegion(self.mapper.open(name), 0, 0), notify=done))

    def _submit(self, io: Io) -> None:
        self._flying.append(io)
        self.reactor.submit(io)

    def _settle(self) -> None:
        self.reactor.run_until(lambda: not self._flying, PATIENCE, "the I/O in flight")

    def _reload(self) -> None:
        """Take all devices down in order and build them again from the disks."""
        self._settle()
        on_step, self.backend.on_step = self.backend.on_step, None
        self.mapper.close()
        self.mapper = self._engine(self.reactor, self.disks)
        self._build()
        self.backend.on_step = on_step

    def _start_merge(self) -> None:
        """Let a snapshot go back into the origin."""
        self._settle()
        snap = self.rng.choice(self.snaps)
        on_step, self.backend.on_step = self.backend.on_step, None
        self.mapper.load("live", _table(f"snapshot-merge {snap.words}"))
        self.mapper.suspend(snap.name)
        self.mapper.suspend("live")
        self.merging = snap
        self.origin = snap.promise.copy()
        self.backend.on_step = on_step
        self.mapper.resume("live")

    def _build(self) -> None:
        build(self.mapper, self.snaps, self.merging)

    def _check(self, name: str, promise: Promise) -> None:
        """Read a device: every sector is as written last, or as a write in flight makes it."""
        self._settle()
        if (name, promise) in self._owed():
            assert numbers(self.mapper.open(name).read(0, SECTORS)) == promise.now, name

    def _compare(self) -> None:
        for name, promise in self._owed():
            self._check(name, promise)

    # The power cuts

    def _cut(self) -> None:
        """See what is left after a power cut now.

        What the exceptions of a COW hold is looked up where the same was left of it before, and
        laid over the origin; an engine loads it where it reads anything new (`Stores`). One cut of
        twenty is loaded as a whole and read bio by bio, in a merge one of ten, which then has to
        end well.
        """
        self.cuts += 1
        self._lose_the_invalid()
        outcomes = self.backend.outcomes(list(self.disks.values()), self._cut_rng)
        by_name = dict(zip(self.disks, outcomes, strict=True))
        origin = numbers(by_name["origin"].content())
        found = {"live": origin}
        for snap in self.snaps:
            if snap not in self.lost:
                name = "live" if snap is self.merging else snap.name
                found[name] = [*map(self._layer(snap, by_name[snap.cow]).get, _ALL, origin)]
        for name, promise in self._owed():
            broken = promise.broken_by(found[name])
            assert not broken, f"after power cut {self.cuts}, {name}: {broken}"
        chance = self._cut_rng.random()
        if chance < 0.05 or (self.merging is not None and chance < 0.1):
            self._load(outcomes, found)

    def _layer(self, snap: Snap, cow: Outcome) -> dict[int, int]:
        """Return what the exceptions of a snapshot hold, by sector, of what is left of a COW."""
        key = snap.name, cow.state
        if (layer := self._layers.get(key)) is None:
            content = cow.content()
            store = self.stores.load(snap.table, cow, content, self.disks["origin"])
            layer = self._layers[key] = {}
            held, last = ends(content)
            for old, new in store.exceptions:
                first, place = old * store.chunk_size, new * store.chunk_size
                end = place + min(store.chunk_size, SECTORS - first)
                assert held[place:end] == last[place:end], "a sector is torn"
                layer.update(enumerate(held[place:end], first))
        return layer

    def _load(self, outcomes: list[Outcome], found: dict[str, list[int]]) -> None:
        """Have a fresh engine load all that is left: it must read as was found, and merge well."""
        disks = {disk.path: disk for disk in (outcome.disk() for outcome in outcomes)}
        mapper = self._engine(self._judge, disks)
        build(mapper, self.snaps, self.merging)
        for name, _ in self._owed():
            assert self._read(mapper, name) == found[name], name
        if self.merging is not None:
            self._judge.run_until(lambda: _is_merged(mapper), PATIENCE, "the merge")
            for name, promise in self._owed():
                broken = promise.broken_by(self._read(mapper, name))
                assert not broken, f"merged after power cut {self.cuts}, {name}: {broken}"
            broken = self.origin.broken_by(numbers(disks["origin"].read(0, SECTORS)))
            assert not broken, f"after the merge, {broken}"
        mapper.close()

    def _read(self, mapper: UserMapper, name: str) -> list[int]:
        """Read a whole device: into memory that is there already, which takes half of the time."""
        extents = [(0, SECTORS * SECTOR_SIZE)]
        region = IoRegion(mapper.open(name), 0, SECTORS)
        whole.perform(self._judge, Io(Op.READ, region, self._memory, extents))
        return numbers(self._memory.read(extents))

    def _engine(self, reactor: Reactor, disks: dict[str, SimulatedDisk]) -> UserMapper:
        mapper = UserMapper(reactor, open_device=lambda path, _write: disks[path])
        mapper.module(SnapshotModule).merge = "kernel" if self.seed % 2 else "batches"
        return mapper


def build(mapper: UserMapper, snaps: list[Snap], merging: Snap | None) -> None:
    """Make the devices: the snapshots, then `live`, which is the origin or merges one."""
    for snap in snaps:
        if snap is not merging:
            mapper.create(snap.name, snap.table)
    words = "snapshot-origin origin" if merging is None else f"snapshot-merge {merging.words}"
    mapper.create("live", _table(words))


@functools.cache
def _table(words: str) -> Table:
    return Table.parse(f"0 {SECTORS} {words}")


def _is_merged(mapper: UserMapper) -> bool:
    status = mapper.status("live")[0].status
    assert isinstance(status, SnapshotMergeStatus)
    assert not status.trouble
    return status.empty
