"""snapshot-origin, and the snapshots of every origin (drivers/md/dm-snap.c).

A write that comes through snapshot-origin first has the old data of its chunk copied out to every
snapshot. A write that gets to the device on another path is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from dmcopy import table as lines
from dmcopy.io.region import Device
from dmcopy.io.request import WRITE, Op
from dmcopy.io.stacked import StackedDevice
from dmcopy.kcopyd import Throttle
from dmcopy.table import TableLine
from dmcopy.targets.base import REMAPPED, SUBMITTED, Bio, Host, Map, Target, register

if TYPE_CHECKING:
    from dmcopy.targets.snapshot import Snapshot

LONGEST_WRITE = 1 << 31
"""Where there is no snapshot, origin writes are not cut (rounddown_pow_of_two(UINT_MAX))."""


@dataclass
class Origin:
    """A device that has snapshots, or a snapshot-origin over it.

    `snapshots` are in the order in which the kernel goes through them: the largest chunks first.
    `hosts`: of the devices whose writes come here, which a handover holds meanwhile.
    """

    snapshots: list[Snapshot] = field(default_factory=list)
    hosts: list[Host] = field(default_factory=list)

    def insert(self, snapshot: Snapshot) -> None:
        """Add a snapshot, or sort it in again after its chunk size has changed."""
        if snapshot not in self.snapshots:
            self.snapshots.append(snapshot)
        self.snapshots.sort(key=lambda one: -one.chunk_size)

    def minimum_chunk_size(self) -> int:
        """Return the smallest chunk of all snapshots; 0 when there is none."""
        return min((one.chunk_size for one in self.snapshots if one.chunk_size), default=0)

    def is_copied_out(self, sector: int) -> bool:
        """Return whether a write to the chunk at `sector` has to wait for no snapshot."""
        for snapshot in self.snapshots:  # noqa: SIM110 - called for each chunk of a long write
            if snapshot.delays_origin(sector):
                return False
        return True

    def write(self, sector: int, bio: Bio | None) -> Map:
        """Have the chunk at `sector` copied out wherever it was not (__origin_write).

        SUBMITTED: it was not, somewhere; `bio` is kept and comes back here after one of the copies.
        That copy is started last, to give the others a head start.
        """
        result = REMAPPED
        last: Callable[[], object] | None = None
        for snapshot in self.snapshots:
            call = snapshot.host.call  # what one of them raises is not the others' fault
            pending = call(snapshot.pending_for_origin, sector) or snapshot.loss
            if pending is None:
                continue
            result = SUBMITTED
            if bio is not None:
                pending.origin_bios.append(bio)
                bio = None
                if not pending.started:
                    last = partial(call, pending.start_copy)
            elif not pending.started:
                call(pending.start_copy)
        if last is not None:
            last()
        return result


class SnapshotModule:
    """The globals of dm-snapshot.ko, one of each in an engine.

    `copy_throttle` and `cow_threshold` are its parameters snapshot_copy_throttle (a percentage) and
    snapshot_cow_threshold (the copies in flight beyond which new writes wait). `merge`: "kernel"
    has snapshot-merge go run by run, as the kernel does; otherwise it goes by the megabyte.
    """

    def __init__(self) -> None:
        self.copy_throttle = Throttle()
        self.cow_threshold = 2048
        self.merge: Literal["batches", "kernel"] = "batches"
        self.origins: dict[Hashable, Origin] = {}
        self._waiters: list[Callable[[], object]] = []

    def origin(self, device: Device) -> Origin:
        """Return the record of an origin, a new one if it has none."""
        origin = self.origins.get(device.identity)
        if origin is None:
            origin = self.origins[device.identity] = Origin()
        return origin

    def forget_if_unused(self, device: Device) -> None:
        """Drop the record of an origin that has nothing any more."""
        origin = self.origins.get(device.identity)
        if origin is not None and not origin.snapshots and not origin.hosts:
            del self.origins[device.identity]

    def when_pending_done(self, notify: Callable[[], object]) -> None:
        """Call `notify` when any pending exception, of whatever snapshot, is done."""
        self._waiters.append(notify)

    def pending_done(self) -> None:
        """Call what waits for a pending exception that is done."""
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for notify in waiters:
                notify()


@register
class SnapshotOrigin(Target):
    """`snapshot-origin <origin>`.

    A write is cut at the smallest chunk that there was at resume: after a snapshot was added or
    removed the device must be suspended and resumed, as under the kernel. Over chunks that are
    copied out it stays whole where it goes to no other mapped device: there the kernel's block
    layer merges what was cut.
    """

    value: lines.SnapshotOrigin
    name: ClassVar[str] = "snapshot-origin"
    version: ClassVar = (1, 9, 0)
    flush_bios = 1

    def __init__(self, line: TableLine, host: Host) -> None:
        super().__init__(line, host)
        self.device = host.open(self.value.origin)
        host.use(self.device, 0, self.length)
        self._module = host.module(SnapshotModule)
        self._origin = Origin()

    def accepts(self, op: Op, sector: int, count: int) -> int:
        at, end = sector, sector + count
        if not isinstance(self.device, StackedDevice):
            while at < end and self._origin.is_copied_out(at):
                at += super().accepts(op, at, end - at)
        return at - sector or super().accepts(op, sector, count)

    def map(self, bio: Bio) -> Map:
        """Send reads down; let writes wait for the snapshots."""
        bio.device = self.device
        if bio.op != WRITE:
            return REMAPPED
        origin = self._origin
        for snapshot in origin.snapshots:
            if snapshot.pending.copies > self._module.cow_threshold:
                snapshot.pending.when_room(partial(self.host.call, self._go_on, bio))
                return SUBMITTED
        return origin.write(bio.sector, bio)

    def resume(self) -> None:
        """Take part: from now on snapshots of the origin hear of writes."""
        self._origin = self._module.origin(self.device)
        self._origin.hosts.append(self.host)
        self.max_write_len = self._origin.minimum_chunk_size() or LONGEST_WRITE

    def postsuspend(self) -> None:
        """Leave the origin: snapshots hear no more of writes through this device."""
        if self.host in self._origin.hosts:
            self._origin.hosts.remove(self.host)
            self._module.forget_if_unused(self.device)
            self._origin = Origin()

    def failed(self) -> None:
        self.postsuspend()

    def _go_on(self, bio: Bio) -> None:
        if self.map(bio) is REMAPPED:
            self.host.reactor.submit(bio)
