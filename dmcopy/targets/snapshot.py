"""snapshot: an origin as it was, with what has changed since on a COW device.

The rules are those of drivers/md/dm-snap.c (6.1 and 6.12).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from dmcopy.errors import ClosedError
from dmcopy.io.region import IoRegion
from dmcopy.io.request import DISCARD, FLUSH, READ, WRITE_ZEROES, Io
from dmcopy.kcopyd import Client, Throttle
from dmcopy.ondisk.exceptions import ExceptionTable
from dmcopy.table import TableLine
from dmcopy.table import Target as TableTarget
from dmcopy.table.snapshot import Snapshot as SnapshotLine
from dmcopy.targets import handover
from dmcopy.targets.allocation import Allocation
from dmcopy.targets.base import (
    DONE,
    KILL,
    REMAPPED,
    SUBMITTED,
    Bio,
    Host,
    Map,
    Target,
    TargetError,
    register,
)
from dmcopy.targets.origin import SnapshotModule
from dmcopy.targets.pending import Pending, PendingExceptions
from dmcopy.targets.persistent import PersistentStore
from dmcopy.targets.store import ExceptionStore, TransientStore, check_chunk_size
from dmcopy.targets.tracking import TrackedChunks

COPY_PAGES = 256
"""Pages that a snapshot sets aside for its copies: 1 MiB."""
COPY_DEPTH = 64
WAIT_SECONDS = 60.0


@register
class Snapshot(Target):
    """`snapshot <origin> <COW> <P|PO|N> <chunk_size> [<#features> <feature>...]`.

    Attributes:
        origin, cow: the devices.
        store, exceptions: where the changed chunks are, and which there are.
        pending, tracked: the exceptions under way, and the bios that these must not overtake.
        chunk_size: in sectors; 0 while another table still has the store.
        valid: false once it is lost. overflowed: full, but what it has can be read (PO).
        active: it was resumed, and hears of writes to the origin.
        loss: while it is being made invalid, what writes to the origin wait for.

    For snapshots of your own: `allocation` says where a persistent store puts its chunks,
    `make_store` what the store is. A handover passes on the store with its allocation.
    """

    value: SnapshotLine
    name: ClassVar[str] = "snapshot"
    version: ClassVar = (1, 16, 0)
    flush_bios = 1
    wants_end_io = True
    is_merge = False
    allocation: ClassVar[type[Allocation]] = Allocation

    def __init__(self, line: TableLine, host: Host) -> None:
        super().__init__(line, host)
        features = {feature.lower() for feature in self.value.features or ()}
        passes_down = "discard_passdown_origin" in features
        self.origin = host.open(self.value.origin, write=self.is_merge or passes_down)
        self.cow = host.open(self.value.cow)
        if self.cow.identity == self.origin.identity:
            raise TargetError("COW device cannot be the same as origin device")
        host.use(self.origin, 0, self.length)
        host.use(self.cow, 0, self.cow.sectors)
        if "discard_zeroes_cow" in features:
            self.discard_bios = 2 if passes_down else 1  # the second is for the origin
        self.module = host.module(SnapshotModule)
        self.valid = True
        self.overflowed = False
        self.active = False
        self.chunk_size = 0
        self._shift = 0
        self.exceptions = ExceptionTable()
        self.tracked = TrackedChunks()
        self.store = self.make_store()
        self.client = Client(
            COPY_PAGES, reactor=host.reactor, throttle=self._throttle(), depth=COPY_DEPTH
        )
        self.pending = PendingExceptions(
            self.origin, self.cow, self.client, self.module, self._committed
        )
        self.pending.use(self.store, self.cow)
        self.loss: Pending | None = None  # its bios wait for the store to say so
        self._lost: list[Pending] = []  # what ends then
        try:
            self._register()
        except BaseException:
            self.client.destroy()
            self.store.close()
            raise

    def make_store(self) -> ExceptionStore:
        """Return the store that the line of the table asks for. Raises TargetError."""
        check_chunk_size(self.value.chunk_size, self.cow, self.origin)
        letters = self.value.store.upper()
        if letters[0] == "N":
            return TransientStore(self.cow, self.value.chunk_size)
        return PersistentStore(
            self.host.reactor,
            self.cow,
            self.value.chunk_size,
            overflow=letters[1:2] == "O",
            allocation=self.allocation,
        )

    def _throttle(self) -> Throttle | None:
        throttle = self.module.copy_throttle
        return throttle if throttle.percent < 100 else None

    def _register(self) -> None:
        """Join the snapshots of the origin; read the store, unless another hands it over later."""
        origin = self.module.origin(self.origin)
        try:
            waits_for_handover = handover.is_due(origin, self)
            origin.insert(self)
            if not waits_for_handover:
                self.valid = self.store.load(self.exceptions)
                self._set_chunk_size()
                origin.insert(self)
        except BaseException:
            if self in origin.snapshots:
                origin.snapshots.remove(self)
            self.module.forget_if_unused(self.origin)
            raise

    def _set_chunk_size(self) -> None:
        self.chunk_size = self.max_io_len = self.max_discard = self.store.chunk_size
        self._shift = self.chunk_size.bit_length() - 1
        self._mask = self.chunk_size - 1

    # Bios

    def map(self, bio: Bio) -> Map:
        """Send a bio to the COW or the origin, or let it wait for an exception (snapshot_map)."""
        op = bio.op
        if op == FLUSH:
            bio.device = self.cow
            return REMAPPED
        if not self.valid:
            return KILL
        if op != READ:
            if self.pending.is_congested:
                self.pending.when_room(partial(self._map_again, bio))
                return SUBMITTED
            if self.overflowed:
                return KILL
        chunk = bio.sector >> self._shift
        if op == DISCARD and bio.number:
            return self._to_origin(bio, chunk)
        new = self.exceptions.get(chunk)
        if new is not None:
            self.remap(bio, new)
            if op == DISCARD and bio.count == self.chunk_size:
                return self._zero(bio, new)
            return REMAPPED
        if op == DISCARD:
            return DONE
        if op == READ:
            return self._to_origin(bio, chunk)
        return self._write_new(bio, chunk)

    def end_io(self, bio: Bio) -> bool:
        if bio.data is not None:
            self.tracked.ended(bio.data)
        return True

    def remap(self, bio: Bio, new: int) -> None:
        """Send a bio to chunk `new` of the COW."""
        bio.device = self.cow
        bio.sector = new << self._shift | bio.sector & self._mask

    def _to_origin(self, bio: Bio, chunk: int) -> Map:
        bio.device = self.origin
        self.tracked.add(bio, chunk)
        return REMAPPED

    def _zero(self, bio: Bio, new: int) -> Map:
        """Zero the chunk on the COW in place of a discard (zero_exception)."""
        region = IoRegion(self.cow, new << self._shift, self.chunk_size)
        self.host.reactor.submit(
            Io(WRITE_ZEROES, region, notify=lambda io: bio.end(errno.EIO if io.error else 0))
        )
        return SUBMITTED

    def _write_new(self, bio: Bio, chunk: int) -> Map:
        """Let a write to a chunk that is not on the COW wait until it is."""
        pending = self.pending.get(chunk) or self.pending.prepare(chunk)
        if pending is None:
            return self._out_of_space(bio)
        self.remap(bio, pending.new)
        if not pending.started and bio.count == self.chunk_size:
            self.host.call(pending.start_full, bio)
            return SUBMITTED
        pending.snapshot_bios.append(bio)
        if not pending.started:
            self.host.call(pending.start_copy)
        return SUBMITTED

    def _map_again(self, bio: Bio) -> None:
        """Map a bio that had to wait."""
        result = self.map(bio)
        if result is REMAPPED:
            self.host.reactor.submit(bio)
        elif result is not SUBMITTED:
            bio.end(errno.EIO if result is KILL else 0)

    # Exceptions

    def _takes_part(self, sector: int) -> bool:
        """Return whether what the origin has at `sector` is this snapshot's, too."""
        return self.valid and self.active and sector < self.host.sectors and not self.is_merge

    def delays_origin(self, sector: int) -> bool:
        """Return whether a write to the origin at `sector` must wait."""
        if self.pending.is_congested:
            return True
        if not self._takes_part(sector):
            return self.loss is not None
        chunk = sector >> self._shift
        return self.pending.get(chunk) is not None or self.exceptions.get(chunk) is None

    def pending_for_origin(self, sector: int) -> Pending | None:
        """Return the exception that a write to the origin at `sector` must wait for, if any."""
        if not self._takes_part(sector):
            return self.loss
        chunk = sector >> self._shift
        pending = self.pending.get(chunk)
        if pending is not None:
            return pending
        if self.exceptions.get(chunk) is not None:
            return None
        pending = self.pending.prepare(chunk)
        if pending is None:
            self.invalidate()
            return self.loss
        return pending

    def _committed(self, batch: Sequence[Pending], good: bool) -> None:
        """Exceptions are durable, or lost (pending_complete)."""
        if not good:
            self.invalidate()
        for pending in batch:
            if self.loss is not None:
                self._lost.append(pending)
            elif not self.valid:
                self._finish(pending, errno.EIO)
            else:
                old = pending.old
                self.exceptions.insert(old, pending.new)
                if old in self.tracked:
                    self.tracked.when_quiet(old, partial(self._finish, pending, 0))
                else:
                    self._finish(pending, 0)

    def _finish(self, pending: Pending, error: int) -> None:
        """End an exception, and release the bios that waited for it."""
        self.pending.remove(pending)
        self._release(pending, error)

    def _release(self, pending: Pending, error: int) -> None:
        self.module.pending_done()
        submit = self.host.reactor.submit
        if pending.full_bio is not None:
            pending.full_bio.notify = pending.full_end
            pending.full_bio.end(error)
        for bio in pending.snapshot_bios:
            if error:
                bio.end(error)
            else:
                submit(bio)
        if pending.origin_bios:
            self._write_on(pending.origin_bios)

    def _write_on(self, bios: Sequence[Bio]) -> None:
        """Let writes to the origin continue."""
        origin = self.module.origin(self.origin)
        alone = origin.snapshots == [self]  # then there is no other to wait for
        for bio in bios:
            if alone or origin.write(bio.sector, bio) is REMAPPED:
                bio.target.host.reactor.submit(bio)

    def invalidate(self) -> None:
        """Give the snapshot up, for ever (__invalidate_snapshot).

        A write to the origin without a copy is sent down only after the store says so: a crash in
        between would leave a store that seems to be good.
        """
        if self.valid:
            self.valid = False
            self.loss = Pending(self.pending, -1, -1, -1)
            self.loss.started = True
            self.store.invalidate(self._invalidated)

    def _invalidated(self) -> None:
        loss, self.loss = self.loss, None
        lost, self._lost = self._lost, []
        self.host.event()
        for pending in lost:
            self._finish(pending, errno.EIO)
        assert loss is not None
        self._release(loss, errno.EIO)

    def _out_of_space(self, bio: Bio) -> Map:
        """The COW is full for a write to the snapshot: PO reports it, P and N are lost."""
        if self.store.letters == "PO":
            self.overflowed = True
            return KILL
        self.invalidate()
        if self.loss is None:
            return KILL
        self.loss.snapshot_bios.append(bio)
        return SUBMITTED

    # Status

    def status(self) -> str:
        if not self.valid:
            return "Invalid"
        if self.overflowed:
            return "Overflow"
        usage = self.store.usage()
        if not self.chunk_size:  # waiting for a handover, so there are no chunks to count
            return f"0/{usage.total} 0"
        return f"{usage.allocated}/{usage.total} {usage.metadata}"

    def table(self) -> TableTarget:
        """Return the words, with the store's own chunk size: 0 while it waits for a handover."""
        value: SnapshotLine = self.value.canonical()
        return dataclasses.replace(value, store=self.store.letters, chunk_size=self.chunk_size)

    # Life

    def preresume(self) -> None:
        """Refuse to run before a handover can be done."""
        handover.check_resume(self.module.origin(self.origin), self)

    def resume(self) -> None:
        """Take over the exceptions of the table before, if there are any, and run."""
        origin = self.module.origin(self.origin)
        if not self.active:
            handover.take_over(origin, self, self._swap)
        origin.insert(self)
        self.active = True

    def destroy(self) -> None:
        """Leave the origin; wait for what is still copied for it (snapshot_dtr)."""
        origin = self.module.origin(self.origin)
        handover.cancel(origin, self)
        if self in origin.snapshots:
            origin.snapshots.remove(self)
        self.module.forget_if_unused(self.origin)
        self.wait_idle()
        self.client.destroy()
        self.store.close()

    def wait_idle(self) -> None:
        """Wait until nothing is copied or written for the store any more."""
        with contextlib.suppress(ClosedError):  # nothing is, then, whatever its counts say
            self.host.reactor.run_until(
                lambda: not len(self.pending) and self.store.is_idle,
                WAIT_SECONDS,
                f"the copies of snapshot {self.host.name}",
            )

    def failed(self) -> None:
        """Be invalid, if there can be writes to the origin."""
        if self.active:
            self.invalidate()

    def stopped(self) -> None:
        """Let the writes to the origin proceed."""
        loss, self.loss = self.loss, None
        self._write_on([*self.pending.give_up(), *(loss.origin_bios if loss else ())])
        self.module.pending_done()

    def start_merge(self) -> None:
        """Merge: for snapshots that do."""

    def stop_merge(self) -> None:
        """Stop merging, and wait until it has: for snapshots that do."""

    def _swap(self, source: Snapshot) -> None:
        """Exchange exceptions and store with `source` (__handover_exceptions)."""
        self.exceptions, source.exceptions = source.exceptions, self.exceptions
        self.store, source.store = source.store, self.store
        # Whether overflow is reported is for the table to say that is running; P or N is not.
        if self.store.letters != "N":
            self.store.letters = "PO" if source.store.letters == "PO" else "P"
        self.store.attach(self.host.reactor, self.cow)
        self.pending.use(self.store, self.cow)
        source.pending.use(source.store, source.cow)
        self.valid, self.overflowed = source.valid, source.overflowed
        source.valid = False  # it must get no more I/O
        self._set_chunk_size()
