"""snapshot-merge: a snapshot's chunks go back into its origin (drivers/md/dm-snap.c).

From the last exception backwards, run by run: what other snapshots need of the origin is copied
out for them, the run is copied from the COW to the origin, the origin is flushed, and the
exceptions are cleared on the COW. After a crash anywhere, what was not cleared is merged once more,
with the same data.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import ClassVar

from dmcopy.io.region import IoRegion
from dmcopy.io.request import Io, Op
from dmcopy.table import TableLine
from dmcopy.targets.base import DONE, REMAPPED, SUBMITTED, Bio, Host, Map, TargetError, register
from dmcopy.targets.persistent import PersistentStore
from dmcopy.targets.snapshot import WAIT_SECONDS, Snapshot
from dmcopy.targets.store import ExceptionStore


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
        self._running = False
        self._stopping = False
        self._failed = False
        self._first = 0  # the run that is being merged: writes to it wait
        self._count = 0
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
        if op == Op.WRITE and self._first <= chunk < self._first + self._count:
            bio.device = self.origin
            self._queued.append(bio)
            return SUBMITTED
        self.remap(bio, new)
        if op == Op.WRITE:
            self.tracked.add(bio, chunk)
        return REMAPPED

    def status(self) -> str:
        """Return one of the five forms."""
        return "Merge failed" if self.valid and self._failed else super().status()

    def presuspend(self) -> None:
        """Stop the merge after the present run; wait for that."""
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

    def start_merge(self) -> None:
        """Merge from where it was left."""
        if not self._running:
            self._running = True
            self.host.reactor.call_soon(self._next_run)

    def stop_merge(self) -> None:
        """Stop after the present run, and wait for that."""
        self._stopping = True
        try:
            self.host.reactor.run_until(
                lambda: not self._running, WAIT_SECONDS, f"the merge of {self.host.name} to stop"
            )
        finally:
            self._stopping = False

    def _store(self) -> PersistentStore:
        assert isinstance(self.store, PersistentStore), "other stores are refused when loaded"
        return self.store

    def _next_run(self) -> None:
        if self._stopping or not self.valid:
            self._running = False
        else:
            self._store().last_extent(self._found)

    def _found(self, old: int, new: int, count: int) -> None:
        """Merge `count` chunks from `old` on; none is the end, less than none an error."""
        if count <= 0:
            self._failed = self._failed or count < 0
            self._running = False
            return
        start = old << self._shift
        length = count << self._shift
        if 0 <= self.origin.sectors - start < length:
            length = self.origin.sectors - start
        source = IoRegion(self.cow, new << self._shift, length)
        dest = IoRegion(self.origin, start, length)
        self._copy_out(dest, count << self._shift, lambda: self._merge(old, count, source, dest))

    def _copy_out(self, dest: IoRegion, length: int, notify: Callable[[], object]) -> None:
        """Have the range copied out to every other snapshot, then call `notify`.

        Repeated until nothing is pending, since there may be writes meanwhile.
        """
        origin = self.module.origin(self.origin)
        waits = False
        for sector in range(dest.sector, dest.sector + length, self.max_io_len):
            waits |= origin.write(sector, None) is SUBMITTED
        if waits:
            self.module.when_pending_done(lambda: self._copy_out(dest, length, notify))
        else:
            notify()

    def _merge(self, old: int, count: int, source: IoRegion, dest: IoRegion) -> None:
        """Publish the run, wait for writes to it that are under way, and copy it."""
        self._first, self._count = old, count
        left = count

        def quiet() -> None:
            nonlocal left
            left -= 1
            if not left:
                self.client.copy_chunk(source, [dest], self._merged)

        for chunk in range(old, old + count):
            self.tracked.when_quiet(chunk, quiet)

    def _merged(self, read_err: int, write_err: int, _context: object) -> None:
        if read_err or write_err:
            self._fail()
            return
        # The merged data must be durable before its exceptions are gone from the COW.
        flush = Io(Op.FLUSH, IoRegion(self.origin, 0, 0), notify=self._flushed)
        self.host.reactor.submit(flush)

    def _flushed(self, flush: Io) -> None:
        if flush.error:
            self._fail()
        else:
            self._store().commit_merge(self._count, self._cleared)

    def _cleared(self, good: bool) -> None:
        if not good:
            self._fail()
            return
        for chunk in range(self._first + self._count - 1, self._first - 1, -1):
            if chunk in self.exceptions:  # a damaged store may name a chunk twice
                self.exceptions.remove(chunk)
        self._release_queued(0)
        self._next_run()

    def _fail(self) -> None:
        """Stop for good; what is not merged stays readable (merge_callback, shut)."""
        self._failed = True
        self._release_queued(errno.EIO)
        self._running = False

    def _release_queued(self, error: int) -> None:
        self._first = self._count = 0
        queued, self._queued = self._queued, []
        for bio in queued:
            if error:
                bio.end(error)
            else:
                self.host.reactor.submit(bio)

    def make_store(self) -> ExceptionStore:
        """Return a store that can be merged. Raises TargetError for one that cannot."""
        store = super().make_store()
        if not store.can_merge:
            raise TargetError("Snapshot exception store does not support snapshot-merge.")
        return store
