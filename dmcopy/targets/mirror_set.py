"""The work of a mirror: recovery, reads, writes and failed writes, in passes of one worker.

What happens when a leg fails a write depends on the features of the table:

    none                    the write ends well, though one leg lacks it; the region is out of sync
    handle_errors           the write is held until the device is suspended; an event is raised
    + keep_log              the write ends well; an event is raised

Rules: do_mirror and what it calls in drivers/md/dm-raid1.c, 6.1 and 6.12, and measured on both.
Only the worker talks to the log, and only it waits; the ends of I/O put things into its queues.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import EIO, EOPNOTSUPP
from functools import partial
from typing import Final, Literal

from dmcopy.io.parts import submit_all
from dmcopy.io.request import Io, Op
from dmcopy.kcopyd import Client, Flag, Throttle
from dmcopy.targets.base import REQUEUE, Bio, Host
from dmcopy.targets.dirty_log import CoreLog
from dmcopy.targets.mirror_legs import Leg, LegError, Legs
from dmcopy.targets.region_hash import Region, RegionHash, RegionState
from dmcopy.targets.work import Worker
from dmcopy.units import PAGE_SECTORS

COPY_PAGES: Final = 2048
"""Pages of the client that recovers: eight copies of 1 MiB, of one region or of several."""
COPY_SECTORS: Final = 2048


class Module:
    """What all mirrors of an engine share, as the parameters of dm_mirror.

    `resync_throttle` is its raid1_resync_throttle. `recovery`, which the kernel does not have, is
    of the mirrors made after it is set. "several" regions are recovered at a time: as many as are
    8 MiB, which is what the pages hold, and one more, so that they are still used while a region
    comes to its end. As in the "kernel", one is (MAX_RECOVERY in dm-raid1.c). The end
    is the same, but where it hangs on what came first: a region is copied from the leg that is the
    default one when its copy begins, though that leg fail meanwhile and another take over;
    failures that are found together raise one event; and a write that a suspend without flush sends
    back finds its region being recovered, not out of sync and yet to be, and is dealt with after.
    """

    def __init__(self) -> None:
        self.resync_throttle = Throttle()
        self.recovery: Literal["several", "kernel"] = "several"


class MirrorSet:
    """The queues of a mirror, and the worker that empties them.

    `begin` and `length` are those of the table's line. A bio's `data` is the region that it writes.
    """

    def __init__(
        self,
        host: Host,
        legs: Legs,
        log: CoreLog,
        *,
        begin: int,
        length: int,
        region_size: int,
        features: Sequence[str],
    ) -> None:
        self._host = host
        self._reactor = host.reactor
        self._legs = legs
        self._log = log
        self._begin = begin
        self._length = length
        self._region_size = region_size
        self._shift = region_size.bit_length() - 1
        self._handle_errors = "handle_errors" in features
        self._keep_log = "keep_log" in features
        self._worker = Worker(host.reactor, self._work)
        module = host.module(Module)
        several = max(1, COPY_PAGES * PAGE_SECTORS // max(region_size, PAGE_SECTORS)) + 1
        self.hash = RegionHash(
            log,
            self._worker.wake,
            self._queue_delayed,
            max_recovery=1 if module.recovery == "kernel" else several,
        )
        self._reads: list[Bio] = []
        self._writes: list[Bio] = []
        self._failures: list[Bio] = []
        self._holds: list[Bio] = []
        self._log_failure = False
        self._suspending = False
        self._client = Client(
            COPY_PAGES,
            reactor=host.reactor,
            throttle=module.resync_throttle,
            sub_job_sectors=COPY_SECTORS,
        )

    @property
    def idle(self) -> bool:
        """Whether there is neither work to do nor a recovery under way."""
        return self._worker.idle and not self.hash.recovering

    @property
    def held(self) -> int:
        """How many writes wait for the device to be suspended."""
        return len(self._holds)

    def region_of(self, sector: int) -> int:
        """Return the region of a sector of the mapped device."""
        return sector - self._begin >> self._shift

    def queue_read(self, bio: Bio) -> None:
        """Have a read done: of a region that is not in sync, or that failed elsewhere."""
        self._reads.append(bio)
        self._worker.wake()

    def queue_write(self, bio: Bio) -> None:
        """Have a write, flush or discard done."""
        self._writes.append(bio)
        self._worker.wake()

    def may_read_again(self, sector: int) -> bool:
        """Whether a read that failed has a default leg without errors, or another one, to go to."""
        if self._legs.default.ok:
            return True
        return self._log.in_sync[self.region_of(sector)] and self._legs.choose() is not None

    def suspend(self) -> None:
        """End what is held, hold nothing any more, and begin no further recovery."""
        self._suspending = True
        holds, self._holds = self._holds, []
        for bio in holds:
            if self._host.noflush:
                self._try_again(bio)
            else:
                bio.end(EIO)
        self.hash.stop_recovery()

    def resume(self) -> None:
        """Hold what must wait, and recover, again."""
        self._suspending = False
        self.hash.start_recovery()

    def close(self) -> None:
        """Free what the recovery holds."""
        self._client.destroy()

    async def _work(self) -> None:
        reads, self._reads = self._reads, []
        writes, self._writes = self._writes, []
        failures, self._failures = self._failures, []
        self.hash.update(errors_handled=self._handle_errors)
        await self._log.flush()
        self._recover()
        for bio in reads:
            self._read(bio)
        if writes:
            await self._write(writes)
        for bio in failures:
            self._end_failed(bio)

    def _recover(self) -> None:
        self.hash.prepare_recovery()
        while (region := self.hash.next_quiesced()) is not None:
            self._copy(region)
        if not self._legs.in_sync and self._log.sync_count == self._log.regions:
            self._host.event()
            self._legs.sync_completed()

    def _copy(self, region: Region) -> None:
        """Copy a region from the default leg to all others."""
        start = region.number << self._shift
        count = min(self._region_size, self._length - start)
        source, others = self._legs.default, self._legs.others
        # As ever without handle_errors: a failed leg does not keep the others from their data.
        flags = 0 if self._handle_errors else Flag.IGNORE_ERROR

        def copied(read_error: int, write_errors: int, _context: object) -> None:
            if read_error:
                self._legs.fail(source, LegError.SYNC)
            for number, leg in enumerate(others):
                if write_errors >> number & 1:
                    self._legs.fail(leg, LegError.SYNC)
            self.hash.end_recovery(region, well=not (read_error or write_errors))

        place, *dests = (leg.region(start, count) for leg in (source, *others))
        if any((count << 9) % leg.device.logical_block_size for leg in self._legs):
            copied(1, 0, None)  # no I/O of that size can work
        else:
            # Alone: were it merged with its neighbours, it would be tried again if those fail.
            self._client.copy_chunk(place, dests, copied, flags=flags).alone = True

    def _read(self, bio: Bio) -> None:
        in_sync = self.hash.state(self.region_of(bio.sector)) in (
            RegionState.CLEAN,
            RegionState.DIRTY,
        )
        leg: Leg | None = self._legs.default
        if in_sync:
            leg = self._legs.choose()
        elif not self._legs.default.ok:
            leg = None
        if leg is None:
            bio.end(EIO)
            return
        place = leg.region(bio.sector - self._begin, bio.count)
        read = Io(Op.READ, place, bio.memory, bio.extents, self._read_ended, context=(bio, leg))
        self._reactor.submit(read)

    def _read_ended(self, read: Io) -> None:
        bio, leg = read.context
        if not read.error:
            bio.end()
            return
        self._legs.fail(leg, LegError.READ)
        if self.may_read_again(bio.sector):
            self.queue_read(bio)
        else:
            bio.end(EIO)

    async def _write(self, writes: list[Bio]) -> None:
        """Send writes to where the state of their region says, once the log knows of them."""
        to_all: list[Bio] = []
        to_default: list[Bio] = []
        for bio in writes:
            # A flush or a discard changes no region's state.
            state = self.hash.state(bio.data) if bio.op == Op.WRITE else RegionState.CLEAN
            if state is RegionState.RECOVERING:
                # Before anything is awaited, in which the recovery may come to its end.
                self.hash.delay(bio.data, bio)
            else:
                (to_default if state is RegionState.NOSYNC else to_all).append(bio)
        for bio in (*to_all, *to_default):
            if bio.op == Op.WRITE:
                self.hash.begin_write(bio.data)
        if not await self._log.flush():
            self._log_failure = True  # until the mirror gets another table
        if self._log_failure and self._handle_errors:
            self._queue_failures(to_all)
        else:
            for bio in to_all:
                self._write_to_all(bio)
        if self._legs.any_failed and self._handle_errors and not self._keep_log:
            self._queue_failures(to_default)
        else:
            for bio in to_default:
                self._write_to_default(bio)

    def _write_to_default(self, bio: Bio) -> None:
        """Send a write itself to the default leg: its error is the caller's alone."""
        leg = self._legs.default
        bio.device = leg.device
        bio.sector += leg.offset - self._begin
        self._reactor.submit(bio)

    def _write_to_all(self, bio: Bio) -> None:
        flush = bio.op == Op.FLUSH
        writes = []
        for leg in self._legs:
            place = leg.whole if flush else leg.region(bio.sector - self._begin, bio.count)
            write = Io(bio.op, place, bio.memory, bio.extents, fua=bio.fua, context=leg)
            writes.append(write)
        submit_all(self._reactor.submit, writes, partial(self._written, bio))

    def _written(self, bio: Bio, writes: Sequence[Io]) -> None:
        failed = [write.context for write in writes if write.error]
        if not failed:
            bio.end()
        elif bio.op == Op.DISCARD:  # nothing is lost with it: no leg is degraded
            bio.end(EOPNOTSUPP)
        else:
            for leg in failed:
                self._legs.fail(leg, LegError.WRITE)
            self._queue_failures([bio])

    def _end_failed(self, bio: Bio) -> None:
        """End, or hold, a write that failed somewhere or could not be tried."""
        if not self._log_failure:
            self._legs.in_sync = False
            if bio.op == Op.FLUSH:
                self.hash.flush_failure = True
            elif bio.op == Op.WRITE:
                self.hash.mark_nosync(bio.data)
        if self._legs.first_ok is None or (self._keep_log and self._log_failure):
            bio.end(EIO)
        elif self._handle_errors and not self._keep_log:
            self._hold(bio)
        else:
            bio.end()

    def _hold(self, bio: Bio) -> None:
        """Keep a write until the device is suspended; then it goes back, or fails."""
        if self._suspending:
            bio.end(REQUEUE if self._host.noflush else EIO)
        else:
            self._holds.append(bio)

    def _try_again(self, bio: Bio) -> None:
        """Let a bio that was held go round once more, before it goes back.

        The kernel's core sends down again what is requeued until it blocks I/O (dm_wq_work in
        dm.c), which is after the targets' presuspend. So it ends with EIO if no valid leg is left,
        though the suspend is one without flush. Measured on 6.1 and 6.12, where it is a race: now
        and then I/O is blocked before.
        """
        if bio.op == Op.WRITE:
            self.hash.end_write(bio.data)
        self.queue_write(bio)

    def _queue_delayed(self, bios: list[Bio]) -> None:
        if bios:
            self._writes += bios
            self._worker.wake()

    def _queue_failures(self, bios: list[Bio]) -> None:
        if bios:
            self._failures += bios
            self._worker.wake()
