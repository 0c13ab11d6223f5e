"""snapshot-merge: a snapshot's chunks go back into its origin (drivers/md/dm-snap.c).

From the last exceptions backwards: what other snapshots need of the origin is copied out for them,
the chunks are copied from the COW to the origin, the origin is flushed, and the exceptions are
cleared on the COW. After a crash anywhere, what was not cleared is merged once more, with the same
data.

The kernel does that for each run of consecutive chunks, here it is done for `BATCH_BYTES` of them:
scattered chunks have a flush and a commit each there, and share one here. Where a run cannot be
merged, those that the kernel had merged before are, and no others.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from typing import ClassVar, Final

from dmcopy.errors import ClosedError
from dmcopy.io.region import IoRegion
from dmcopy.io.request import Io, Op
from dmcopy.table import TableLine
from dmcopy.targets.base import DONE, REMAPPED, SUBMITTED, Bio, Host, Map, TargetError, register
from dmcopy.targets.persistent import MergeRun, PersistentStore
from dmcopy.targets.snapshot import WAIT_SECONDS, Snapshot
from dmcopy.targets.store import ExceptionStore
from dmcopy.targets.work import Calls, Requests, Worker
from dmcopy.units import SECTOR_SHIFT

BATCH_BYTES: Final = 1 << 20
"""How much is merged before a flush; writes to it wait, some milliseconds on most disks."""


@register
class SnapshotMerge(Snapshot):
    """`snapshot-merge <origin> <COW> <P|PO> <chunk_size> [<#features> <feature>...]`.

    It takes the place of snapshot-origin: its writes to the origin are copied out to the origin's
    other snapshots first.
    """

    name: ClassVar[str] = "snapshot-merge"
    version: ClassVar = (1, 5, 0)
    flush_bios = 2
    is_merge = True

    def __init__(self, line: TableLine, host: Host) -> None:
        self._worker = Worker(host.reactor, self._merge)
        self._stopping = False
        self._failed = False
        self._merging: set[int] = set()  # the chunks that are being merged: writes to them wait
        self._queued: list[Bio] = []
        super().__init__(line, host)

    def map(self, bio: Bio) -> Map:
        """Send a bio to where its chunk is now (snapshot_merge_map)."""
        op = bio.op
        if op == Op.FLUSH:
            bio.device = self.cow if bio.number else self.origin
            return REMAPPED
        if op == Op.DISCARD:
            return DONE
        chunk = bio.sector >> self._shift
        new = self.exceptions.get(chunk) if self.valid else None
        if new is None:
            bio.device = self.origin
            if op == Op.WRITE:
                return self.module.origin(self.origin).write(bio.sector, bio)
            return REMAPPED
        if op == Op.WRITE and chunk in self._merging:
            bio.device = self.origin
            self._queued.append(bio)
            return SUBMITTED
        self.remap(bio, new)
        if op == Op.WRITE:
            self.tracked.add(bio, chunk)
        return REMAPPED

    def status(self) -> str:
        return "Merge failed" if self.valid and self._failed else super().status()

    def presuspend(self) -> None:
        """Stop the merge after the present batch; wait for that."""
        self.stop_merge()

    def presuspend_undo(self) -> None:
        """Merge again: the device was not suspended."""
        self.start_merge()

    def postsuspend(self) -> None:
        """Leave the origin: its snapshots hear no more of writes through this device."""
        origin = self.module.origin(self.origin)
        origin.hosts.remove(self.host)

    def resume(self) -> None:
        """Take the exceptions over, and merge what is left of them."""
        super().resume()
        origin = self.module.origin(self.origin)
        origin.hosts.append(self.host)
        # It acts as an origin: its bios are cut at the smallest chunk (snapshot_merge_resume).
        self.max_io_len = origin.minimum_chunk_size() or self.chunk_size
        self.start_merge()

    def failed(self) -> None:
        """Stop merging. What is not merged is in the store, for another table."""
        self._failed = True
        origin = self.module.origin(self.origin)
        if self.host in origin.hosts:
            origin.hosts.remove(self.host)

    def start_merge(self) -> None:
        """Merge from where it was left."""
        if self._worker.idle:
            self._worker.wake()

    def stop_merge(self) -> None:
        """Stop after the present batch, and wait for that."""
        self._stopping = True
        try:
            with contextlib.suppress(ClosedError):  # it has failed
                what = f"the merge of {self.host.name} to stop"
                self.host.reactor.run_until(lambda: self._worker.idle, WAIT_SECONDS, what)
        finally:
            self._stopping = False

    def _store(self) -> PersistentStore:
        assert isinstance(self.store, PersistentStore), "other stores are refused when loaded"
        return self.store

    async def _merge(self) -> None:
        """Merge a batch after the other, until nothing is left or it fails or is to stop."""
        kernels = self.module.merge == "kernel"
        most = 1 if kernels else max(1, (BATCH_BYTES >> SECTOR_SHIFT) // self.chunk_size)
        while self.valid and not self._stopping:
            runs, error = await self._store().last_runs(most)
            if not runs:
                self._failed = self._failed or error != 0
                return
            # What a disk does not have is sure to fail: nothing that would follow it is written.
            runs = list(takewhile(self._is_there, runs)) or runs[:1]
            await self._copy_out(runs)
            bad = await self._merge_runs(runs)
            if bad is not None:
                self._fail(bad)
                return
            for bio in self._take_queued():
                self.host.reactor.submit(bio)

    def _is_there(self, run: MergeRun) -> bool:
        cow_end = run.new + run.count << self._shift
        return run.old << self._shift < self.origin.sectors and cow_end <= self.cow.sectors

    async def _copy_out(self, runs: Sequence[MergeRun]) -> None:
        """Have the runs copied out to every other snapshot.

        Repeated until nothing is pending, since there may be writes meanwhile.
        """
        while self._begin_copies(runs):
            done = Calls()
            self.module.when_pending_done(partial(self.host.call, done))
            await done

    def _begin_copies(self, runs: Sequence[MergeRun]) -> bool:
        origin = self.module.origin(self.origin)
        if origin.snapshots == [self]:
            return False  # as mostly: a microsecond or two for each chunk
        waits = False
        for run in runs:
            start = run.old << self._shift
            for sector in range(start, start + (run.count << self._shift), self.max_io_len):
                waits |= origin.write(sector, None) is SUBMITTED
        return waits

    async def _merge_runs(self, runs: Sequence[MergeRun]) -> MergeRun | None:
        """Copy runs, flush, and clear those before the first bad one; return where it failed."""
        self._merging = {chunk for run in runs for chunk in range(run.old, run.old + run.count)}
        busy = self.tracked.of(self._merging)  # writes that are under way
        quiet = Calls(len(busy))
        for chunk in busy:
            self.tracked.when_quiet(chunk, quiet)
        await quiet
        bad = await self._copy(runs)
        good = list(takewhile(lambda run: run not in bad, runs))
        count = sum(run.count for run in good)
        if not (good and await self._flush() and await self._store().commit_merge(count)):
            return runs[0]
        for run in good:
            for chunk in range(run.old + run.count - 1, run.old - 1, -1):
                if chunk in self.exceptions:  # a damaged store may name a chunk twice
                    self.exceptions.remove(chunk)
        return runs[len(good)] if bad else None

    async def _copy(self, runs: Sequence[MergeRun]) -> set[MergeRun]:
        """Copy all runs, in the order of the origin, so that neighbours go out together.

        Return those that could not be copied.
        """
        copied = Calls(len(runs))
        for run in sorted(runs):
            start, length = run.old << self._shift, run.count << self._shift
            if 0 <= self.origin.sectors - start < length:
                length = self.origin.sectors - start
            source = IoRegion(self.cow, run.new << self._shift, length)
            self.client.copy_chunk(source, [IoRegion(self.origin, start, length)], copied, run)
        return {run for read_err, write_err, run in await copied if read_err or write_err}

    async def _flush(self) -> bool:
        """Make the merged data durable, before its exceptions are gone from the COW."""
        flush = Io(Op.FLUSH, IoRegion(self.origin, 0, 0))
        return await Requests(self.host.reactor, [flush]) == [0]

    def _fail(self, run: MergeRun) -> None:
        """Stop for good at a run; what is not merged stays readable (merge_callback, shut)."""
        self._failed = True
        for bio in self._take_queued():
            if run.old <= bio.sector >> self._shift < run.old + run.count:
                bio.end(errno.EIO)
            else:
                self._map_again(bio)

    def _take_queued(self) -> list[Bio]:
        """Return the writes that waited, and let none wait any more."""
        self._merging = set()
        queued, self._queued = self._queued, []
        return queued

    def make_store(self) -> ExceptionStore:
        """Return a store that can be merged. Raises TargetError for one that cannot."""
        store = super().make_store()
        if not store.can_merge:
            raise TargetError("Snapshot exception store does not support snapshot-merge.")
        return store
