"""snapshot: an origin as it was, with what has changed since on a COW device.

The rules are those of drivers/md/dm-snap.c (6.1 and 6.12). A chunk is copied out once, before its
first change; until the copy and the metadata that names it are durable it is a *pending* exception,
and whoever wants to write the chunk waits.
"""

from __future__ import annotations

import dataclasses
import errno
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from dmcopy.io.region import IoRegion
from dmcopy.io.request import Op
from dmcopy.kcopyd import Client
from dmcopy.ondisk.exceptions import ExceptionTable
from dmcopy.table import TableLine
from dmcopy.table import Target as TableTarget
from dmcopy.table.snapshot import Snapshot as SnapshotLine
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
from dmcopy.targets.persistent import PersistentStore
from dmcopy.targets.store import ExceptionStore, TransientStore, check_chunk_size

COPY_PAGES = 256
"""Pages that a snapshot sets aside for its copies: 1 MiB."""
WAIT_SECONDS = 60.0


class Pending:
    """An exception that is not complete yet: being copied, or committed.

    `snapshot_bios` and `origin_bios` wait for it. `full_bio`: a write of the whole chunk, which
    needs no copy; it is under way to the COW, and `full_end` is what its end is told to.
    """

    __slots__ = (
        "failed",
        "full_bio",
        "full_end",
        "new",
        "old",
        "origin_bios",
        "sequence",
        "snapshot",
        "snapshot_bios",
        "started",
    )

    def __init__(self, snapshot: Snapshot, old: int, new: int, sequence: int) -> None:
        self.snapshot = snapshot
        self.old = old
        self.new = new
        self.sequence = sequence
        self.started = False
        self.failed = False
        self.full_bio: Bio | None = None
        self.full_end: Callable[[Any], object] | None = None
        self.origin_bios: list[Bio] = []
        self.snapshot_bios: list[Bio] = []


@register
class Snapshot(Target):
    """`snapshot <origin> <COW> <P|PO|N> <chunk_size> [<#features> <feature>...]`."""

    name: ClassVar[str] = "snapshot"
    version: ClassVar = (1, 16, 0)
    flush_bios = 1
    wants_end_io = True
    is_merge = False

    def __init__(self, line: TableLine, host: Host) -> None:
        super().__init__(line, host)
        self.origin = host.open(self.value.origin, write=self.is_merge)
        self.cow = host.open(self.value.cow)
        if self.cow.identity == self.origin.identity:
            raise TargetError("COW device cannot be the same as origin device")
        host.use(self.origin, 0, self.length)
        host.use(self.cow, 0, self.cow.sectors)
        features = {feature.lower() for feature in self.value.features or ()}
        self.discard_bios = len(features) if "discard_zeroes_cow" in features else 0
        self.module = host.module(SnapshotModule)
        self.valid = True
        self.overflowed = False
        self.active = False
        self.exceptions = ExceptionTable()
        self.store = self._make_store()
        self.client = Client(COPY_PAGES, reactor=host.reactor, throttle=self._throttle(), depth=64)
        self._pending: dict[int, Pending] = {}
        self._start_sequence = 0
        self._complete_sequence = 0
        self._out_of_order: dict[int, Pending] = {}
        self._tracked: dict[int, int] = {}
        self._untracked: dict[int, list[Callable[[], object]]] = {}
        self._copies = 0
        self._congested: deque[Callable[[], object]] = deque()
        self._shift = 0
        self._mask = 0
        self.chunk_size = 0
        try:
            self._register()
        except BaseException:
            self.client.destroy()
            self.store.close()
            raise

    def _make_store(self) -> ExceptionStore:
        check_chunk_size(self.value.chunk_size, self.cow, self.origin)
        letters = self.value.store.upper()
        if letters[0] == "N":
            return TransientStore(self.cow, self.value.chunk_size)
        reactor, overflow = self.host.reactor, letters[1:2] == "O"
        return PersistentStore(reactor, self.cow, self.value.chunk_size, overflow=overflow)

    def _throttle(self) -> Any:
        throttle = self.module.copy_throttle
        return throttle if throttle.percent < 100 else None

    def _register(self) -> None:
        """Join the snapshots of the origin; read the store, unless another hands it over later."""
        origin = self.module.origin(self.origin)
        try:
            waits_for_handover = self._check_handover()
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
        if op == Op.FLUSH:
            bio.device = self.cow
            return REMAPPED
        if not self.valid:
            return KILL
        if op != Op.READ:
            if self._copies > self.module.cow_threshold:
                self.wait_for_room(lambda: self._go_on(bio))
                return SUBMITTED
            if self.overflowed:
                return KILL
        chunk = bio.sector >> self._shift
        if op == Op.DISCARD and bio.number:
            return self._to_origin(bio, chunk)
        new = self.exceptions.get(chunk)
        if new is not None:
            self.remap(bio, new)
            if op == Op.DISCARD and bio.count == self.chunk_size:
                return self._zero(bio, new)
            return REMAPPED
        if op == Op.DISCARD:
            return DONE
        if op == Op.READ:
            return self._to_origin(bio, chunk)
        return self._write_new(bio, chunk)

    def end_io(self, bio: Bio) -> bool:
        """Stop tracking a bio that `track` was told of."""
        if bio.data is not None:
            self._untrack(bio.data)
        return True

    def remap(self, bio: Bio, new: int) -> None:
        """Send a bio to chunk `new` of the COW."""
        bio.device = self.cow
        bio.sector = new << self._shift | bio.sector & self._mask

    def track(self, bio: Bio, chunk: int) -> None:
        """Let a chunk's exception not become complete before this bio has ended."""
        bio.data = chunk
        self._tracked[chunk] = self._tracked.get(chunk, 0) + 1

    def when_untracked(self, chunk: int, notify: Callable[[], object]) -> None:
        """Call `notify` when no tracked bio of a chunk is in flight: at once, if none is."""
        if chunk in self._tracked:
            self._untracked.setdefault(chunk, []).append(notify)
        else:
            notify()

    def _to_origin(self, bio: Bio, chunk: int) -> Map:
        bio.device = self.origin
        self.track(bio, chunk)
        return REMAPPED

    def _untrack(self, chunk: int) -> None:
        count = self._tracked[chunk] - 1
        if count:
            self._tracked[chunk] = count
            return
        del self._tracked[chunk]
        for notify in self._untracked.pop(chunk, ()):
            notify()

    def _zero(self, bio: Bio, new: int) -> Map:
        """Zero the chunk on the COW in place of a discard (zero_exception)."""
        region = IoRegion(self.cow, new << self._shift, self.chunk_size)
        self.client.zero(
            [region], notify=lambda _read, failed, _context: bio.end(errno.EIO if failed else 0)
        )
        return SUBMITTED

    def _write_new(self, bio: Bio, chunk: int) -> Map:
        """Let a write to a chunk that is not on the COW wait until it is."""
        pending = self._pending.get(chunk) or self._prepare(chunk)
        if pending is None:
            self._out_of_space()
            return KILL
        self.remap(bio, pending.new)
        if pending.started:
            pending.snapshot_bios.append(bio)
        elif bio.count == self.chunk_size:
            pending.started = True
            self._start_full(pending, bio)
        else:
            pending.started = True
            pending.snapshot_bios.append(bio)
            self.start_copy(pending)
        return SUBMITTED

    def _go_on(self, bio: Bio) -> None:
        """Map a bio that had to wait."""
        result = self.map(bio)
        if result is REMAPPED:
            self.host.reactor.submit(bio)
        elif result is not SUBMITTED:
            bio.end(errno.EIO if result is KILL else 0)

    # Pending exceptions

    def pending_for_origin(self, sector: int) -> Pending | None:
        """Return the exception that a write to the origin at `sector` must wait for, if any."""
        if not self.valid or not self.active or sector >= self.host.sectors or self.is_merge:
            return None
        chunk = sector >> self._shift
        pending = self._pending.get(chunk)
        if pending is not None:
            return pending
        if self.exceptions.get(chunk) is not None:
            return None
        pending = self._prepare(chunk)
        if pending is None:
            self.invalidate()
        return pending

    @property
    def is_congested(self) -> bool:
        """Whether so many copies are under way that new writes must wait."""
        return self._copies > self.module.cow_threshold

    def wait_for_room(self, notify: Callable[[], object]) -> None:
        """Call `notify` when the snapshot is no longer congested."""
        self._congested.append(notify)

    def start_copy(self, pending: Pending) -> None:
        """Copy a chunk out; at the end of the origin it may be a short one."""
        size = self.chunk_size
        start = pending.old << self._shift
        count = min(size, self.origin.sectors - start)
        self._copies += 1
        self.client.copy(
            IoRegion(self.origin, start, count),
            (IoRegion(self.cow, pending.new << self._shift, count),),
            0,
            self._copied,
            pending,
        )

    def _prepare(self, chunk: int) -> Pending | None:
        new = self.store.prepare()
        if new is None:
            return None
        pending = self._pending[chunk] = Pending(self, chunk, new, self._start_sequence)
        self._start_sequence += 1
        return pending

    def _start_full(self, pending: Pending, bio: Bio) -> None:
        """Write a whole chunk straight to the COW (start_full_bio)."""
        pending.full_bio = bio
        pending.full_end = bio.notify
        bio.notify = lambda ended: self._copied(0, ended.error, pending)
        self._copies += 1
        self.host.reactor.submit(bio)

    def _copied(self, read_err: int, write_err: int, pending: Pending) -> None:
        """Commit what was copied, in the order of allocation (copy_callback).

        Out of order, a crash could leave holes: space that is never used again.
        """
        pending.failed = bool(read_err or write_err)
        commit = self.store.commit
        if pending.sequence != self._complete_sequence:
            self._out_of_order[pending.sequence] = pending
        else:
            following: Pending | None = pending
            while following is not None:
                self._complete_sequence += 1
                commit(
                    following.old, following.new, not following.failed,
                    partial(self._committed, following),
                )  # fmt: skip
                following = self._out_of_order.pop(self._complete_sequence, None)
        self._copies -= 1
        while self._congested and self._copies <= self.module.cow_threshold:
            self._congested.popleft()()

    def _committed(self, pending: Pending, good: bool) -> None:
        """The exception is durable, or lost (pending_complete)."""
        if not good:
            self.invalidate()
        if not good or not self.valid:
            self._finish(pending, errno.EIO)
            return
        self.exceptions.insert(pending.old, pending.new)
        if pending.old in self._tracked:
            self.when_untracked(pending.old, partial(self._finish, pending, 0))
        else:
            self._finish(pending, 0)

    def _finish(self, pending: Pending, error: int) -> None:
        """Let everybody go on who waited for an exception."""
        del self._pending[pending.old]
        self.module.pending_done()
        full, submit = pending.full_bio, self.host.reactor.submit
        if full is not None:
            full.notify = pending.full_end
            full.end(error)
        for bio in pending.snapshot_bios:
            if error:
                bio.end(errno.EIO)
            else:
                submit(bio)
        if pending.origin_bios:
            origin = self.module.origin(self.origin)
            for bio in pending.origin_bios:
                if origin.write(bio.sector, bio) is REMAPPED:
                    submit(bio)

    # The end of a snapshot

    def invalidate(self) -> None:
        """Give the snapshot up, for ever (__invalidate_snapshot)."""
        if self.valid:
            self.valid = False
            self.store.invalidate()
            self.host.event()

    def _out_of_space(self) -> None:
        """The COW is full for a write to the snapshot: PO reports it, P and N are lost."""
        if self.store.letters == "PO":
            self.overflowed = True
        else:
            self.invalidate()

    # Status

    def status(self) -> str:
        """Return one of the five forms (snapshot_status)."""
        if not self.valid:
            return "Invalid"
        if self.overflowed:
            return "Overflow"
        usage = self.store.usage()
        return f"{usage.allocated}/{usage.total} {usage.metadata}"

    def table(self) -> TableTarget:
        """Return the words, with the store's own chunk size: 0 while it waits for a handover."""
        value: SnapshotLine = self.value.canonical()
        return dataclasses.replace(value, store=self.store.letters, chunk_size=self.chunk_size)

    # Life

    def preresume(self) -> None:
        """Refuse to run before a handover can be done (snapshot_preresume)."""
        source, dest = self._handover()
        if source is None or dest is None:
            return
        if source is self:
            raise TargetError("Unable to resume snapshot source until handover completes.")
        if not source.host.suspended:
            raise TargetError("Unable to perform snapshot handover until source is suspended.")

    def resume(self) -> None:
        """Take over the exceptions of the table before, if there are any, and run."""
        source, dest = self._handover()
        if source is not None and dest is self:
            self._take_over(source)
        self.module.origin(self.origin).insert(self)
        self.active = True

    def destroy(self) -> None:
        """Leave the origin; wait for what is still copied for it (snapshot_dtr)."""
        source, dest = self._handover()
        if source is self and dest is not None:
            dest.valid = False  # a handover that never came
        origin = self.module.origin(self.origin)
        if self in origin.snapshots:
            origin.snapshots.remove(self)
        self.module.forget_if_unused(self.origin)
        self.host.reactor.run_until(
            self._is_idle, WAIT_SECONDS, f"the copies of snapshot {self.host.name}"
        )
        self.client.destroy()
        self.store.close()

    def _is_idle(self) -> bool:
        return not self._pending and self.store.is_idle

    def _others(self) -> list[Snapshot]:
        """Return the snapshots of the same origin that have the same COW, this one included."""
        snapshots = self.module.origin(self.origin).snapshots
        return [one for one in snapshots if one.cow.identity == self.cow.identity]

    def _handover(self) -> tuple[Snapshot | None, Snapshot | None]:
        """Return the snapshot that has the exceptions of the COW, and the one to get them."""
        source = dest = None
        for one in self._others():
            if one.active:
                source = one
            else:
                dest = one
        return source, dest

    def _check_handover(self) -> bool:
        """Return whether another has the exceptions now (__validate_exception_handover)."""
        source, dest = self._handover()
        if len(self._others()) == 2 or dest is not None:
            raise TargetError("Snapshot cow pairing for exception table handover failed")
        if source is None:
            return False
        if self.is_merge:
            if any(one.is_merge for one in self.module.origin(self.origin).snapshots):
                raise TargetError("A snapshot is already merging.")
            if not source.store.can_merge:
                raise TargetError("Snapshot exception store does not support snapshot-merge.")
        return True

    def _take_over(self, source: Snapshot) -> None:
        """Get the exceptions and the store of a suspended snapshot, while the origin is held."""
        origin = self.module.origin(self.origin)
        held = [host for host in origin.hosts if host is not self.host]
        merging = [one for one in origin.snapshots if one.is_merge and one is not self]
        for one in merging:
            one.stop_merge()
        for host in held:
            host.hold()
        try:
            self.host.reactor.run_until(
                source._is_idle, WAIT_SECONDS, f"the copies of snapshot {source.host.name}"
            )
            letters = self.store.letters
            self.exceptions, source.exceptions = source.exceptions, self.exceptions
            self.store, source.store = source.store, self.store
            self.store.attach(self.cow)
            self.store.letters = letters  # whether overflow is reported is the new table's to say
            self.valid, self.overflowed = source.valid, source.overflowed
            source.valid = False  # it must get no more I/O
            self._set_chunk_size()
        finally:
            for host in held:
                host.release()
            for one in merging:
                one.start_merge()

    def start_merge(self) -> None:
        """Let a merge go on: for snapshots that merge."""

    def stop_merge(self) -> None:
        """Stop a merge, and wait for it: for snapshots that merge."""
