"""A job that is done in slices.

A job that is longer than a request may be, or has flags, is cut into slices. A slice that needs a
look between its read and its writes (WRITE_SEQ, SPARSE), or that has no read at all (zeroing), goes
through `Staged`. So does one that could not be read where errors are ignored: its writes are left.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any, Final

from dmcopy.io.parts import submit_all
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import IoRegion
from dmcopy.io.request import Io, Op, cut
from dmcopy.kcopyd.copyjob import CopyJob, Flag
from dmcopy.kcopyd.job import Notify, Owner, Totals, Work

ZERO_BLOCK_BYTES: Final = 4096
ZERO_SLICE_SECTORS: Final = 32768
"""Zeroing needs no pages, so its slices are longer: 16 MiB (the kernel's are sub-jobs too)."""
_IGNORE_ERROR, _WRITE_SEQ, _SPARSE = map(int, (Flag.IGNORE_ERROR, Flag.WRITE_SEQ, Flag.SPARSE))


class SlicedCopy(CopyJob):
    """A copy in slices of at most `sub_job_sectors`, or a zeroing."""

    def __init__(
        self,
        client: Owner,
        source: IoRegion,
        dests: Sequence[IoRegion],
        callback: Notify | None,
        context: Any,
        flags: int,
        sub_job_sectors: int,
        *,
        zeroes: bool = False,
    ) -> None:
        super().__init__(client, source, dests, callback, context)
        self.zeroes = zeroes
        self.active = 0
        self.has_more = self.count > 0
        self.sequence: WriteSequence | None = None
        if flags & _WRITE_SEQ:
            # The two exclude each other (dm-kcopyd.c, dm_kcopyd_copy).
            flags &= ~_IGNORE_ERROR
            self.sequence = WriteSequence(self)
        self.flags = flags
        if zeroes:
            self._longest = ZERO_SLICE_SECTORS
        elif self.count <= sub_job_sectors:
            self._longest = sub_job_sectors
        else:
            block = max(region.device.logical_block_size for region in (source, *dests)) >> 9
            self._longest = sub_job_sectors // block * block
        self._cursor = 0

    @property
    def may_go_on(self) -> bool:
        """Whether another slice may be begun; with IGNORE_ERROR also after an error."""
        if self.flags & _IGNORE_ERROR:
            return not self.cancelled and self.failure is None
        return super().may_go_on

    def cut(self) -> SubJob:
        offset = self._cursor
        count = min(self._longest, self.count - offset)
        self._cursor += count
        self.has_more = self._cursor < self.count
        return SubJob(self, offset, count)


class SubJob(Work):
    """One slice of a job, `offset` sectors from its start."""

    alone = True  # a slice is as long as requests get
    skipped = False  # nothing of it was written, though nothing of it failed

    def __init__(self, job: SlicedCopy, offset: int, count: int) -> None:
        super().__init__(
            job.source.slice(offset, count), [dest.slice(offset, count) for dest in job.dests]
        )
        self._job = job
        self.offset = offset
        self.zeroes = job.zeroes
        self.is_plain = not job.flags & ~_IGNORE_ERROR and not job.zeroes

    @property
    def job(self) -> SlicedCopy:
        return self._job

    @property
    def is_unwritten(self) -> bool:
        """Whether it ended without a write; with IGNORE_ERROR zeroes are written instead."""
        ignored = self._job.flags & _IGNORE_ERROR and not self.is_plain
        return self.skipped or (self.error != 0 and not ignored)

    def start(self, reactor: Reactor) -> None:
        """Do it in stages."""
        Staged(self, reactor.submit).start()

    def book(self, totals: Totals) -> SlicedCopy:
        """See `Work.book`. With IGNORE_ERROR, what could not be read is still to be written."""
        job = self._job
        if self.error and self.is_plain and job.flags & _IGNORE_ERROR and job.may_go_on:
            rest = SubJob(job, self.offset, self.source[2])
            rest.is_plain = False
            rest.error = self.error
            self.again = [rest]
        else:
            job.book_part(self, self.offset, totals)
        return job


class WriteSequence:
    """Lets the writes of one job go out in ascending order, whatever order its reads end in.

    The kernel's WRITE_SEQ (dm-kcopyd.c, pop_io_job): a write is issued when its offset is the job's
    write cursor; once a write has failed, later slices fail with EIO without any I/O. Behind a
    failed read nothing is written.
    """

    def __init__(self, job: SlicedCopy) -> None:
        self._job = job
        self._cursor = 0
        self._broken = False
        self._held: dict[int, Staged] = {}

    def ready(self, staged: Staged) -> None:
        """Write the slice when its turn has come, and the slices that waited for it."""
        if self._broken:
            staged.skip()
            return
        self._held[staged.sub.offset] = staged
        while (next_one := self._held.pop(self._cursor, None)) is not None:
            self._cursor += next_one.sub.source.count
            self._issue(next_one)

    def read_failed(self, staged: Staged) -> None:
        """End the slices behind one that could not be read: those that wait and those to come."""
        held, self._held = self._held, {}
        self._broken = True
        staged.finish()
        for later in held.values():
            later.skip()

    def _issue(self, staged: Staged) -> None:
        if self._job.write_err:
            staged.fail(errno.EIO)
        else:
            staged.write()


class Staged:
    """A sub-job in stages: read it (unless it zeroes), wait for its turn, write what there is.

    Whatever raises before a stage's I/O was submitted ends the sub-job with EIO, and continues.
    """

    def __init__(self, sub: SubJob, submit: Callable[[Io], None]) -> None:
        self.sub = sub
        self._submit = submit

    def start(self) -> None:
        """Submit the read, or begin the writes where there is nothing to read, or no more."""
        sub = self.sub
        if sub.zeroes:
            self._ready()
            return
        if sub.error:
            self._write_zeroes()
            return
        read = Io(Op.READ, sub.source, sub.memory, sub.extents, self._read_done)
        try:
            self._submit(read)
        except BaseException:
            self._not_read(errno.EIO)
            raise

    def write(self) -> None:
        """Submit all writes of the slice."""
        try:
            requests = self._writes()
        except BaseException:
            self._not_read(errno.EIO)
            raise
        submit_all(self._submit, requests, self._written)

    def fail(self, error: int) -> None:
        """Fail every destination without any I/O."""
        for index in range(len(self.sub.dests)):
            self.sub.write_failed(index, error)
        self.finish()

    def skip(self) -> None:
        """Write nothing; nothing failed here."""
        self.sub.skipped = True
        self.finish()

    def finish(self) -> None:
        """Hand the sub-job back to its client."""
        self.sub.notify(self.sub)

    def _ready(self) -> None:
        sequence = self.sub.job.sequence
        if sequence is None:
            self.write()
        else:
            sequence.ready(self)

    def _read_done(self, read: Io) -> None:
        sub = self.sub
        if not read.error:
            self._ready()
            return
        if sub.job.flags & _IGNORE_ERROR:
            sub.error = read.error
            self._write_zeroes()
        else:
            self._not_read(read.error)

    def _write_zeroes(self) -> None:
        # The kernel means to write zeroes too (dm-io.c, endio), but may leave stale data.
        self.sub.memory.fill(self.sub.extents, bytes(self.sub.bytes))
        self._ready()

    def _not_read(self, error: int) -> None:
        """End it, and what of its sequence waits behind it: there is nothing to write."""
        self.sub.error = error
        if self.sub.job.sequence is not None:
            self.sub.job.sequence.read_failed(self)
        else:
            self.finish()

    def _writes(self) -> list[Io]:
        sub = self.sub
        if sub.zeroes:
            runs = [(True, 0, sub.source.count)]
        elif sub.job.flags & _SPARSE:
            block = max(dest.device.logical_block_size for dest in sub.dests)
            runs = zero_runs(sub.memory.read(sub.extents), max(ZERO_BLOCK_BYTES, block))
        else:
            runs = [(False, 0, sub.source.count)]
        return [
            self._write(index, dest, zero, offset, count)
            for index, dest in enumerate(sub.dests)
            for zero, offset, count in runs
        ]

    def _write(self, index: int, dest: IoRegion, zero: bool, offset: int, count: int) -> Io:
        op = Op.WRITE_ZEROES if zero else Op.WRITE
        extents = () if zero else cut(self.sub.extents, offset << 9, count << 9)
        region = dest.slice(offset, count)
        return Io(op, region, self.sub.memory, extents, context=index)

    def _written(self, writes: Sequence[Io]) -> None:
        for write in writes:
            if write.error:
                self.sub.write_failed(write.context, write.error)
        self.finish()


def zero_runs(data: bytes, block: int) -> list[tuple[bool, int, int]]:
    """Split data into runs `(is zero, offset, count)` in sectors, on blocks of `block` bytes."""
    runs: list[tuple[bool, int, int]] = []
    zeroes = bytes(block)
    for start in range(0, len(data), block):
        part = data[start : start + block]
        zero = part == zeroes[: len(part)]
        if runs and runs[-1][0] == zero:
            runs[-1] = (zero, runs[-1][1], runs[-1][2] + (len(part) >> 9))
        else:
            runs.append((zero, start >> 9, len(part) >> 9))
    return runs
