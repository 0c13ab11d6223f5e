"""One history of a transfer: seeded faults, interruptions and power cuts, then a healthy last run.

What must hold: whatever a saved state calls written is on the disk after any power cut; a run under
`skip` leaves out exactly the bad blocks; the last run makes every destination the source's twin;
and nothing outside of the copied range ever changes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from dmcopy.io import IoRegion, Op, Reactor
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.kcopyd import Client
from dmcopy.ranges import RangeSet
from dmcopy.transfer import Transfer, TransferPlan
from dmcopy.transfer.destination import Destination
from dmcopy.transfer.store import StateStore
from dmcopy.transfer.verify import Verifier
from dmcopy.units import PAGE_SECTORS


class History:
    """Disks that outlast several runs of the same copy."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.block = rng.choice((512, 512, 4096))
        self.step = self.block >> 9
        self.count = self.step * rng.randint(1, 80)
        self.source = self.disk("source", self.count + self.blocks(8))
        self.start = self.blocks(8) if self.source.sectors > self.count else 0
        self.start = min(self.start, self.source.sectors - self.count)
        self.source.load(self.content(self.source.sectors))
        self.to = self.blocks(4)
        self.dests = [
            self.disk(f"dest{number}", self.to + self.count + self.blocks(4))
            for number in range(rng.randint(1, 3))
        ]
        for dest in self.dests:
            dest.load(rng.randbytes(dest.sectors << 9))
        self.before = [bytes(dest.content) for dest in self.dests]
        self.saved: tuple[str, str] | None = None
        self.sparse = rng.random() < 0.3
        self.cuts = 0
        self.wanted = self.source.read(self.start, self.count)

    def play(self) -> None:
        """Run until nothing goes wrong any more."""
        for _ in range(self.rng.randint(0, 3)):
            self.break_something()
            self.run()
            self.check_saved()
            self.check_outside()
        self.heal()
        transfer = self.run(last=True)
        assert transfer.finished
        assert not transfer.interrupted
        assert not transfer.source_error
        assert all(dest.ok for dest in transfer.dests), [dest.error for dest in transfer.dests]
        for index in range(len(self.dests)):
            assert self.got(index) == self.wanted
        self._cut_power()
        for index in range(len(self.dests)):
            assert self.got(index) == self.wanted, "it was called done, and a power cut undid it"
        self.check_outside()

    def run(self, *, last: bool = False) -> Transfer:
        """Copy once; perhaps end it early, by an interruption or a power cut."""
        rng = self.rng
        backend = SimulatedBackend(rng.randrange(1 << 30))
        reactor = Reactor(backend)
        trouble: list[BaseException] = []
        reactor.on_exception = trouble.append
        pages = rng.choice((1, 2, 4, 16, 64))
        piece = self.step * max(1, rng.choice((1, 2, 8, 32)) // self.step)
        piece = min(piece, pages * PAGE_SECTORS // self.step * self.step)
        sub_job = -(-piece // PAGE_SECTORS) * PAGE_SECTORS
        client = Client(pages, reactor=reactor, sub_job_sectors=sub_job, depth=rng.randint(1, 8))
        plan = TransferPlan(
            self.region(self.source, self.start), self.regions(), piece, self.sparse
        )
        store = StateStore("/nowhere/map")
        skip = rng.random() < 0.5
        transfer = Transfer(
            client,
            plan,
            on_error="skip" if skip else "stop",
            saved=lambda transfer: self.save(store, transfer),
            interval=rng.choice((1e-4, 1e-3, 1.0)),
            outstanding=rng.randint(1, 8),
        )
        store.bind(transfer)
        if self.saved is not None:
            store.restore(transfer, *self.saved, retry=last or not skip)
        known = transfer.bad.ranges()
        transfer.start()
        cut = None if last else rng.choice((None, None, "power", "interrupt", "vanish"))
        if cut is not None:
            reactor.call_later(rng.random() * 0.03, lambda: self.cut(cut, transfer, backend))
        self.powered = True
        reactor.run_until(lambda: transfer.finished or not self.powered, 100)
        assert not trouble, trouble
        if self.powered and not transfer.abandoned:
            assert client.statistics().pages_free == pages
            client.destroy()
            self.check_written(transfer)
            if cut is None and skip and not transfer.source_error:
                self.check_skipped(transfer, known)
            if not transfer.interrupted and not transfer.source_error:
                self.check_verified(reactor, transfer)
        reactor.close()
        return transfer

    def cut(self, how: str, transfer: Transfer, backend: SimulatedBackend) -> None:
        """End a run, or a disk, early."""
        if how == "interrupt":
            transfer.interrupt()
        elif how == "vanish":
            self.rng.choice([self.source, *self.dests]).vanished = True
        elif not transfer.finished:
            self.powered = False
            self.cuts += 1
            backend.power_cut([self.source, *self.dests])

    def save(self, store: StateStore, transfer: Transfer) -> None:
        """Keep what a map file would hold."""
        self.saved = store.dump(transfer)

    def check_saved(self) -> None:
        """What the saved state calls written must survive any power cut."""
        self._cut_power()
        if self.saved is None:
            return
        regions = self.regions()
        for index, written in enumerate(self.saved_ranges()):
            disk = self.dests[index]
            for start, end in written:
                expected = self.source.read(self.start + start, end - start)
                assert disk.read(regions[index].sector + start, end - start) == expected

    def _cut_power(self) -> None:
        self.cuts += 1
        for dest in self.dests:
            dest.crash(self.rng)

    def saved_ranges(self) -> list[RangeSet]:
        """Return what the saved state says of each destination."""
        import json

        assert self.saved is not None
        found = json.loads(self.saved[1])["destinations"]
        return [
            RangeSet((start, start + count) for start, count in dest["written"]) for dest in found
        ]

    def check_written(self, transfer: Transfer) -> None:
        """Every sector that is booked as written is the source's."""
        for index, dest in enumerate(transfer.dests):
            for start, end in dest.written:
                expected = self.source.read(self.start + start, end - start)
                assert self.dests[index].read(self.to + start, end - start) == expected

    def check_skipped(self, transfer: Transfer, known: RangeSet) -> None:
        """Under skip, every block is written, bad, or failed, and for a reason."""
        bad = transfer.bad.ranges()
        for start, end in bad:
            for offset in range(start, end, self.step):
                in_map = offset in known
                assert in_map or self.is_faulty(self.source, Op.READ, self.start + offset)
        for index, dest in enumerate(transfer.dests):
            if dest.error:
                continue
            failed = dest.failures.ranges()
            for offset in range(0, self.count, self.step):
                written = offset in dest.written
                # A block may have gone bad after this destination got it, but before another did.
                assert written or offset in bad or offset in failed, offset
                assert not (written and offset in failed)
                if offset in failed:
                    disk = self.dests[index]
                    op = Op.WRITE if not self.sparse else None
                    assert self.is_faulty(disk, op, self.to + offset)

    def check_verified(self, reactor: Reactor, transfer: Transfer) -> None:
        """A verification finds nothing, unless another program changes what was written."""
        pages = self.rng.choice((1, 8, 64))
        result = Verifier(reactor, transfer.plan, transfer.dests, pages=pages).run()
        assert not any(result.mismatches)
        good = [dest for dest in transfer.dests if not dest.error and dest.written]
        if not good or self.rng.random() < 0.5:
            return
        self.spoil(self.rng.choice(good), reactor, transfer)

    def spoil(self, dest: Destination, reactor: Reactor, transfer: Transfer) -> None:
        """Change one sector, let it be found, and put it right."""
        index = transfer.dests.index(dest)
        start, end = self.rng.choice(list(dest.written))
        offset = self.rng.randrange(start, end)
        sector, disk = self.to + offset, self.dests[index]
        right = disk.read(sector, 1)
        disk.write(sector, bytes([right[0] ^ 1]) + right[1:])
        result = Verifier(reactor, transfer.plan, transfer.dests, pages=8).run()
        unreadable = {offset for ranges in result.unreadable for offset in self.offsets(ranges)}
        disk.write(sector, right)
        disk.flush()  # or a power cut may choose the wrong one of the two
        if offset not in unreadable:
            assert result.mismatches[index] == RangeSet([(offset, offset + 1)])

    def offsets(self, failures: object) -> Iterator[int]:
        """Yield every offset of some failures."""
        for start, end, _ in failures:  # type: ignore[attr-defined]
            yield from range(start, end)

    def check_outside(self) -> None:
        """Nothing but the copied range has changed."""
        for dest, before in zip(self.dests, self.before, strict=True):
            low, high = self.to << 9, (self.to + self.count) << 9
            assert dest.content[:low] == before[:low]
            assert dest.content[high:] == before[high:]

    def is_faulty(self, disk: SimulatedDisk, op: Op | None, sector: int) -> bool:
        """Whether a fault of that kind is, or was, in the block of a sector."""
        return any(
            fault.sector < sector + self.step and sector < fault.sector + fault.count
            for fault in disk.faults
            if fault.op == op or (op is None and fault.op in (Op.WRITE, Op.WRITE_ZEROES))
        )

    def break_something(self) -> None:
        """Put faults on the disks."""
        rng = self.rng
        for disk, ops in [(self.source, (Op.READ,)), *((dest, WRITES) for dest in self.dests)]:
            disk.faults.clear()
            disk.vanished = False
            for _ in range(rng.choice((0, 0, 1, 2))):
                op = rng.choice(ops)
                sector = rng.randrange(disk.sectors)
                times = rng.choice((None, None, 1, 2))
                disk.fail(op, sector, rng.randint(1, 6), times=times)
            if disk is not self.source and rng.random() < 0.1:
                disk.fail(Op.FLUSH, 0, disk.sectors, times=1)

    def heal(self) -> None:
        """Make all disks good."""
        for disk in (self.source, *self.dests):
            disk.faults.clear()
            disk.vanished = False

    def got(self, index: int) -> bytes:
        """Return the copied range as it is on a destination."""
        return self.dests[index].read(self.to, self.count)

    def region(self, disk: SimulatedDisk, start: int) -> IoRegion:
        """Return the copied range on a disk."""
        return IoRegion(disk, start, self.count)

    def regions(self) -> tuple[IoRegion, ...]:
        """Return the destinations' regions."""
        return tuple(self.region(dest, self.to) for dest in self.dests)

    def disk(self, name: str, sectors: int) -> SimulatedDisk:
        """Make a disk."""
        return SimulatedDisk(sectors, f"/nowhere/{name}", logical_block_size=self.block)

    def blocks(self, most: int) -> int:
        """Return a number of sectors, whole blocks, at most `most` of them."""
        return self.step * self.rng.randint(0, most)

    def content(self, sectors: int) -> bytes:
        """Return random data with runs of zeroes."""
        parts = []
        while sectors:
            count = min(sectors, self.rng.randint(1, 24))
            zero = self.rng.random() < 0.4
            parts.append(bytes(count << 9) if zero else self.rng.randbytes(count << 9))
            sectors -= count
        return b"".join(parts)


WRITES = (Op.WRITE, Op.WRITE, Op.WRITE_ZEROES)
