"""A seeded workload on a mirror of the userspace engine, recorded, and the rules for its crashes.

Every other seed's mirror recovers one region at a time, as the kernel's; the others several.

history = History(seed)
history.play(60)
for cut in history.cuts(): history.check(cut)
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from dmcopy.errors import DeadlineError
from dmcopy.io import IoRegion, Reactor
from dmcopy.io.request import Io, Memory, Op
from dmcopy.io.simulated import Fault, SimulatedDisk
from dmcopy.mapper.userspace import UserMapper
from dmcopy.table import Table
from dmcopy.targets.mirror import Mirror
from dmcopy.targets.mirror_set import Module
from tests.simulated.targets.mirror_recording import (
    GARBAGE,
    VERSIONS,
    Cut,
    Event,
    Recorder,
    replay,
    stamp,
    versions,
)

LOG_SECTORS = 4
DEPTH = 5
FEATURES = ("", "1 handle_errors", "2 handle_errors keep_log")


class BrokenRuleError(AssertionError):
    """A rule of mirrors was broken."""


class History:
    """A mirror, a workload on it, and the record of both."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        region = rng.choice((2, 4, 8))
        length = rng.randrange(5, 12) * region - rng.choice((0, 1))
        legs = [
            [sector * VERSIONS + (GARBAGE if leg else 0) for sector in range(length)]
            for leg in range(rng.choice((2, 2, 3, 4)))
        ]
        self._begin(rng, region, rng.choice(FEATURES), legs, [bytes(512)] * LOG_SECTORS, seed)

    def after(self, cut: Cut, rng: random.Random) -> History:
        """Return the history that begins with what a power cut left."""
        other = object.__new__(History)
        order = [cut.trusted or 0, *range(self.count)]
        legs = [cut.legs[leg] for leg in dict.fromkeys(order)]
        other._begin(rng, self.region, self.features, legs, cut.log, self.seed)
        return other

    def _begin(
        self,
        rng: random.Random,
        region: int,
        features: str,
        legs: list[list[int]],
        log: list[bytes],
        seed: int,
    ) -> None:
        self.rng = rng
        self.seed = seed
        self.region = region
        self.features = features
        self.count, self.length = len(legs), len(legs[0])
        self.regions = -(-self.length // region)
        self.disks = [SimulatedDisk(self.length, "abcd"[number]) for number in range(self.count)]
        self.log = SimulatedDisk(LOG_SECTORS, "l")
        for disk, leg in zip(self.disks, legs, strict=True):
            disk.load(b"".join(stamp(*divmod(value, VERSIONS)) for value in leg))
        self.log.load(b"".join(log))
        self.first_legs, self.first_log = legs, log
        self.recorder = Recorder(rng.randrange(1 << 30), self.disks, self.log)
        self.acked = [value % VERSIONS for value in legs[0]]
        self.sent = list(self.acked)
        self.busy: set[int] = set()
        self.in_flight = 0
        self.faults: list[Fault] = []
        self.recovered: set[int] = set()
        self._memories: list[Memory] = []

    @property
    def events(self) -> list[Event]:
        return self.recorder.events

    def play(self, steps: int, *, settle: bool | None = None) -> None:
        """Run the workload, and let everything settle.

        `settle`: let the first recovery end before; `recovered` then has the regions copied.
        """
        reactor = Reactor(self.recorder, stacked=True)
        reactor.on_exception = self._raise
        with reactor, UserMapper(reactor, open_device=self._open) as mapper:
            self.mapper = mapper
            mapper.module(Module).recovery = "kernel" if self.seed % 2 else "several"
            self.reactor = reactor
            self._load(list(range(self.count)))
            if settle or (settle is None and self.rng.random() < 0.5):
                self._settle()
                self.recovered = self._written()
            for _ in range(steps):
                self._step()
            self._repair()
            self._settle()
            if self.in_flight:
                raise BrokenRuleError(f"seed {self.seed}: {self.in_flight} requests never ended")
        for memory in self._memories:
            memory.close()

    def _written(self) -> set[int]:
        """Return the regions in which another leg than the first was written to."""
        writes = [what for kind, what in self.events if kind == "performed"]
        return {
            sector // self.region
            for write in writes
            if 0 < write.disk < self.count
            for sector in range(write.sector, write.sector + len(write.values))
        }

    def _open(self, path: str, write: bool) -> SimulatedDisk:
        del write
        return self.log if path == "l" else self.disks["abcd".index(path)]

    def _raise(self, error: BaseException) -> None:
        raise error

    def _load(self, legs: list[int]) -> None:
        words = " ".join(f"{'abcd'[leg]} 0" for leg in legs)
        text = f"0 {self.length} mirror disk 2 l {self.region} {len(legs)} {words} {self.features}"
        table = Table.parse(text.strip())
        if self.mapper.exists("m"):
            self.mapper.load("m", table)
            self.mapper.resume("m")
        else:
            self.mapper.create("m", table)
        self.device = self.mapper.open("m")
        self.legs = legs
        self.recorder.trusted = self._trusted

    def _trusted(self) -> int | None:
        """Return the leg that a mirror should begin with now: the default one, if it is good."""
        if (table := self.device.active) is None:
            return None
        target = table.targets[0]
        assert isinstance(target, Mirror)
        order = [target.legs.default, *target.legs]
        return next((self.disks.index(leg.device) for leg in order if leg.ok), None)

    # One step of the workload.

    def _step(self) -> None:
        kind = self.rng.choices(
            ("write", "read", "flush", "pause", "cycle", "fault"), (10, 4, 3, 6, 2, 2)
        )[0]
        getattr(self, f"_{kind}")()
        if self.in_flight >= DEPTH:
            self._wait(lambda: self.in_flight < DEPTH)

    def _write(self) -> None:
        sector = self.rng.randrange(self.length)
        end = min(self.length, sector + self.rng.choice((1, 1, 2, 5)))
        sectors = range(sector, end)
        if self.busy.intersection(sectors):
            return
        new = {}
        for one in sectors:
            self.sent[one] += 1
            new[one] = self.sent[one]
            self.events.append(("sent", (one, self.sent[one])))
        memory = Memory(1)
        self._memories.append(memory)
        data = b"".join(stamp(one, version) for one, version in new.items())
        memory.fill([(0, len(data))], data)
        fua = self.rng.random() < 0.1
        self.busy.update(sectors)

        def ended(write: Io) -> None:
            self.in_flight -= 1
            self.busy.difference_update(sectors)
            if not write.error:
                for one, version in new.items():
                    self.acked[one] = version
                if fua:
                    self.recorder.promise(new)
            elif not self.faults:
                raise BrokenRuleError(
                    f"seed {self.seed}: a write failed with {write.error} without a fault"
                )

        region = IoRegion(self.device, sector, len(sectors))
        self._submit(Io(Op.WRITE, region, memory, [(0, len(data))], ended, fua=fua))

    def _read(self) -> None:
        sector = self.rng.randrange(self.length)
        count = min(self.length - sector, self.rng.choice((1, 3, 8)))
        least = self.acked[sector : sector + count]
        memory = Memory(1)
        self._memories.append(memory)
        extents = [(0, count << 9)]

        def ended(read: Io) -> None:
            self.in_flight -= 1
            if read.error:
                if not self.faults:
                    raise BrokenRuleError(f"seed {self.seed}: a read failed without a fault")
                return
            for place, value in enumerate(versions(memory.read(extents))):
                found, version = divmod(value, VERSIONS)
                if found != sector + place or not least[place] <= version <= self.sent[found]:
                    raise BrokenRuleError(
                        f"seed {self.seed}: sector {sector + place} read as {found, version}"
                    )

        self._submit(Io(Op.READ, IoRegion(self.device, sector, count), memory, extents, ended))

    def _flush(self) -> None:
        covered = dict(enumerate(self.acked))

        def ended(flush: Io) -> None:
            self.in_flight -= 1
            if not flush.error:
                self.recorder.promise(covered)

        self._submit(Io(Op.FLUSH, IoRegion(self.device, 0, 0), notify=ended))

    def _submit(self, request: Io) -> None:
        self.in_flight += 1
        self.reactor.submit(request)

    def _pause(self) -> None:
        delay = self.rng.choice((1e-5, 1e-3, 2e-2))
        try:
            self.reactor.run_until(lambda: False, delay)
        except DeadlineError:
            pass

    def _cycle(self) -> None:
        if self.faults:
            self._repair()
        else:
            self.mapper.suspend("m", flush=self.rng.random() < 0.5)
            self.mapper.resume("m")

    def _fault(self) -> None:
        """Let one leg or the log fail; the default leg only if all are in sync: another may then.

        Without handle_errors a region whose recovery failed counts as good, and is called clean
        after the next write to it: there is no rule to be held.
        """
        in_sync = self._is_in_sync()
        if self.faults or not (in_sync or self.features):
            return
        if not in_sync:
            others = [disk for disk in self.disks if disk is not self.disks[self._trusted() or 0]]
            disk = self.rng.choice(others)
        elif self.features and self.rng.random() < 0.3:
            # Without handle_errors a failed log is ignored, and what it says is wrong from then on.
            disk = self.log
        else:
            disk = self.disks[self.rng.randrange(0 if self.features else 1, self.count)]
        op = self.rng.choice((Op.WRITE, Op.WRITE, Op.FLUSH, Op.READ))
        times = self.rng.choice((1, 2, None))
        start = self.rng.randrange(disk.sectors)
        count = self.rng.choice((1, 8, disk.sectors))
        if disk is self.log or op == Op.FLUSH:
            start, count = 0, disk.sectors
        self.faults.append(disk.fail(op, start, count, times=times))

    def _is_in_sync(self) -> bool:
        status = str(self.mapper.status("m")[0])
        return f" {self.regions}/{self.regions} 1 {'A' * self.count} " in status

    def _repair(self) -> None:
        """Take the faults away; put the mirror on the good legs, or on all of them again."""
        if not self.faults:
            return
        for fault in self.faults:
            fault.times = 0
        # What a workflow does: the good leg first, which is known for sure only once nothing is
        # under way. The others are copied to where they differ, which the log knows.
        self.mapper.suspend("m", flush=False)
        order = list(range(self.count))
        order.remove(self._trusted() or 0)
        self._load([self._trusted() or 0, *order])
        self.faults.clear()
        self._settle()

    def _wait(self, done: object) -> None:
        try:
            self.reactor.run_until(done, 1.0)  # type: ignore[arg-type]
        except DeadlineError:
            self._repair()
            self.reactor.run_until(done, 10.0)  # type: ignore[arg-type]

    def _settle(self) -> None:
        try:
            self.reactor.run_until(lambda: False, 1.0)
        except DeadlineError:
            pass

    # The rules.

    def cuts(self) -> Iterator[Cut]:
        """Yield what a power cut after each event could have left."""
        return replay(self.events, self.first_legs, self.first_log, self.rng)

    def check(self, cut: Cut) -> None:
        """Raise BrokenRuleError if a mirror that resumes on `cut` would lose or invent anything."""
        dirty = cut.dirty(self.regions)
        first = cut.legs[0]
        for region in range(self.regions):
            if region in dirty:
                continue
            low = region * self.region
            high = low + self.region
            for leg in cut.legs[1:]:
                if leg[low:high] != first[low:high]:
                    raise BrokenRuleError(
                        f"seed {self.seed}: the legs differ in region {region}, which is clean"
                    )
        for sector, value in enumerate(() if cut.trusted is None else cut.legs[cut.trusted]):
            found, version = divmod(value, VERSIONS)
            if found != sector or not cut.floor[sector] <= version <= cut.latest[sector]:
                raise BrokenRuleError(
                    f"seed {self.seed}: sector {sector} is at version {version}, not from "
                    f"{cut.floor[sector]} to {cut.latest[sector]}"
                )
