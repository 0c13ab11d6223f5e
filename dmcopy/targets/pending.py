"""Pending exceptions: chunks on their way to the COW (drivers/md/dm-snap.c).

A chunk is copied out once, before its first change. Until the copy, and the metadata that names it,
are durable, the exception is *pending*, and writes to the chunk wait for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device, IoRegion
from dmcopy.kcopyd import Client
from dmcopy.targets.base import Bio
from dmcopy.targets.store import Committed, ExceptionStore


class Limits(Protocol):
    """What all snapshots of an engine share: `cow_threshold`, see `SnapshotModule`."""

    cow_threshold: int


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
        "owner",
        "sequence",
        "snapshot_bios",
        "started",
    )

    def __init__(self, owner: PendingExceptions, old: int, new: int, sequence: int) -> None:
        self.owner = owner
        self.old = old
        self.new = new
        self.sequence = sequence
        self.started = False
        self.failed = False
        self.full_bio: Bio | None = None
        self.full_end: Callable[[Any], object] | None = None
        self.origin_bios: list[Bio] = []
        self.snapshot_bios: list[Bio] = []

    def start_copy(self) -> None:
        """Copy the chunk to the COW."""
        self.started = True
        self.owner.copy(self)

    def start_full(self, bio: Bio) -> None:
        """Let a write of the whole chunk, remapped already, stand for the copy (start_full_bio)."""
        self.started = True
        self.full_bio = bio
        self.full_end = bio.notify
        bio.notify = self._full_ended
        self.owner.copies += 1
        self.owner.reactor.submit(bio)

    def _full_ended(self, bio: Bio) -> None:
        self.owner.copied(0, bio.error, self)


class PendingExceptions:
    """The pending exceptions of one snapshot: reserved, copied, and committed in that order.

    `committed(batch, good)` is called with those that end; they are still in here then, until
    `remove`. `copies`: how many are being copied; beyond the module's cow_threshold new writers
    must wait.
    """

    def __init__(
        self,
        origin: Device,
        cow: Device,
        client: Client,
        module: Limits,
        committed: Committed,
    ) -> None:
        self._origin = origin
        self._cow = cow
        self._client = client
        self._module = module
        self._committed = committed
        self.reactor: Reactor = client.reactor
        self.store: ExceptionStore
        self.copies = 0
        self._by_chunk: dict[int, Pending] = {}
        self.get = self._by_chunk.get
        self._next_sequence = 0
        self._complete_sequence = 0
        self._out_of_order: dict[int, Pending] = {}
        self._waiters: deque[Callable[[], object]] = deque()

    def __len__(self) -> int:
        return len(self._by_chunk)

    def use(self, store: ExceptionStore, cow: Device) -> None:
        """Take a store and a handle on the COW: the first ones, or others after a handover."""
        self.store = store
        store.on_committed = self._committed
        self._cow = cow

    def prepare(self, chunk: int) -> Pending | None:
        """Reserve a place for a chunk; None when the COW is full."""
        new = self.store.prepare()
        if new is None:
            return None
        pending = self._by_chunk[chunk] = Pending(self, chunk, new, self._next_sequence)
        self._next_sequence += 1
        return pending

    def remove(self, pending: Pending) -> None:
        """Forget one that has ended."""
        del self._by_chunk[pending.old]

    @property
    def is_congested(self) -> bool:
        """Whether new writers must wait: more copies are under way than the module allows."""
        return self.copies > self._module.cow_threshold

    def when_room(self, notify: Callable[[], object]) -> None:
        """Call `notify` when it is no longer congested (wait_for_in_progress)."""
        self._waiters.append(notify)

    def give_up(self) -> list[Bio]:
        """Let nothing wait any more: call what waits for room, and return the origin's bios."""
        self.copies = 0
        bios: list[Bio] = []
        for pending in self._by_chunk.values():
            bios += pending.origin_bios
            pending.origin_bios = []
        while self._waiters:
            self._waiters.popleft()()
        return bios

    def copy(self, pending: Pending) -> None:
        """Copy a chunk out; at the end of the origin it may be a short one.

        Behind the end, where there is an end that was not there before, reading it fails.
        """
        size = self.store.chunk_size
        start = pending.old * size
        left = self._origin.sectors - start
        count = left if 0 < left < size else size
        self.copies += 1
        self._client.copy_chunk(
            IoRegion(self._origin, start, count),
            (IoRegion(self._cow, pending.new * size, count),),
            self.copied,
            pending,
        )

    def copied(self, read_err: int, write_err: int, pending: Pending) -> None:
        """Commit what was copied, in the order of allocation (copy_callback).

        Out of order, a crash could leave holes: space that is never used again.
        """
        self.copies -= 1
        if read_err or write_err:
            pending.failed = True
        if pending.sequence != self._complete_sequence:
            self._out_of_order[pending.sequence] = pending
        else:
            self._complete_sequence += 1
            self.store.commit(pending)
            while self._out_of_order and self._complete_sequence in self._out_of_order:
                following = self._out_of_order.pop(self._complete_sequence)
                self._complete_sequence += 1
                self.store.commit(following)
        while self._waiters and not self.is_congested:
            self._waiters.popleft()()
