"""A disk with a volatile write cache over any other device: what makes a power cut real.

To kill a guest cuts no power: what it has written is in the host's page cache, and stays. So the
cache is here. A write is held back in memory until it is flushed, or was written with FUA; `cut`
loses it, keeps it or tears it by block, as a disk may.

Two limits: discards and zeroing take effect immediately, and when `LIMIT_BYTES` are held back all
of it goes down; both are what a disk with a small cache might do. A flush is not passed on: what is
below stands for the medium, and `close` makes it durable on the host.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from dmcopy.errors import DeviceError
from dmcopy.export.held import Blocks, HeldWrites, runs
from dmcopy.io import whole
from dmcopy.io.layer import Layer
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device, IoRegion
from dmcopy.io.request import FLUSH, READ, WRITE, Io, Memory
from dmcopy.io.request import cut as cut_extents
from dmcopy.units import PAGE_SIZE, SECTOR_SHIFT

LIMIT_BYTES: Final = 256 << 20
_STAGE_BYTES: Final = 1 << 20


class Log(Protocol):
    """Is told what becomes durable, in the order in which it does; see `write_log.WriteLog`."""

    def write(self, block: int, data: bytes, *, fua: bool = False) -> None:
        """Note a write, which is durable with `fua`."""

    def discard(self, block: int, count: int) -> None:
        """Note a discard, after which blocks are zeroes."""

    def flush(self) -> None:
        """Note a flush: all that was noted before is durable."""

    def mark(self, text: str) -> None:
        """Note a point in time by a text."""


class VolatileDisk(Layer):
    """`below` behind a write cache, on a reactor for stacked devices.

    Attributes:
        writes, flushes: how many there were since the beginning or the last cut.
        cut_after_writes, cut_at_flush: the power is cut, once, when this many have come, 0: never.
            That write can be among what is kept; that flush has done nothing.
        seed: for a cut by one of these. None: all is lost.
        power_lost: called when a cut begins, before anything else, and on the reactor.
        log: is told what becomes durable. One that raises is given up.
    """

    def __init__(self, below: Device, reactor: Reactor) -> None:
        super().__init__(below, reactor)
        self.read_only = False
        self.writes = self.flushes = 0
        self.cut_after_writes = self.cut_at_flush = 0
        self.seed: int | None = None
        self.power_lost: Callable[[], object] = lambda: None
        self.log: Log | None = None
        self._block_sectors = self.logical_block_size >> SECTOR_SHIFT
        # What is written down leaves it only then, so that reads find it all the time.
        self._held = HeldWrites(self.logical_block_size)
        self._off = False
        # What must not overlap: flushes, zeroing, cuts. The first one is under way.
        self._exclusive: deque[tuple[Callable[[], None], Io | None]] = deque()
        self._stage: Memory | None = None

    def submit(self, request: Io) -> None:
        """Take a request; see `StackedDevice.submit`. While the power is off it ends with EIO."""
        if self._off:
            self._end(request, errno.EIO)
        elif request.op == READ:
            self._read(request)
        elif request.op == WRITE:
            self._write(request)
        elif request.op == FLUSH:
            self.flushes += 1
            if self.flushes == self.cut_at_flush:
                self._cut_by_itself(request)
            else:
                self._flush(request)
        else:
            self._exclude(partial(self._clear, request, self._held.number), request)

    def cut(self, seed: int | None, done: Callable[[], object] = lambda: None) -> None:
        """Cut the power, and have it back; then call `done`.

        What was flushed, and what is being flushed, stays. Of the rest each write is lost, kept or
        torn by block, as the seed says; None: all of it is lost. What waits ends with EIO.
        """
        self._off = True
        self.power_lost()
        waiting = list(self._exclusive)[1:]
        for _, request in waiting:
            self._exclusive.pop()
            if request is not None:
                self._end(request, errno.EIO)
        self._exclusive.extend(one for one in waiting if one[1] is None)
        self._exclude(partial(self._lose, seed, done), None)

    def close(self) -> None:
        """Write down what is held back, and make it durable on the host. Raises DeviceError."""
        self.flush()
        whole.flush(self._reactor, self.below)

    def _cut_by_itself(self, request: Io) -> None:
        self._end(request, errno.EIO)
        self._off = True
        # Not inside of `submit`: `power_lost` may end the program that submits.
        self._reactor.call_soon(partial(self.cut, self.seed))

    def _end(self, request: Io, error: int = 0) -> None:
        request.error = error
        self._reactor.call_soon(partial(request.notify, request))  # type: ignore[arg-type, misc]

    def _blocks(self, request: Io) -> range:
        first = request.sector // self._block_sectors
        return range(first, first + request.count // self._block_sectors)

    def _read(self, request: Io) -> None:
        """Read below, and put over it what is held back now; it may be written down meanwhile."""
        blocks = self._blocks(request)
        over = self._held.over(blocks)
        if len(over) == len(blocks):
            self._put(request, over)
            self._end(request)
            return
        region = IoRegion(self.below, request.sector, request.count)

        def read(io: Io) -> None:
            request.error = io.error
            self._put(request, over)
            request.notify(request)  # type: ignore[misc]

        self._reactor.submit(Io(READ, region, request.memory, request.extents, read))

    def _put(self, request: Io, over: Blocks) -> None:
        assert request.memory is not None
        first = self._blocks(request).start
        for block, data in over.items():
            at = (block - first) * self.logical_block_size
            request.memory.fill(cut_extents(request.extents, at, len(data)), data)

    def _write(self, request: Io) -> None:
        assert request.memory is not None
        first = self._blocks(request).start
        number = self._held.add(first, request.memory.read(request.extents))
        self.writes += 1
        if self.writes == self.cut_after_writes:
            self._cut_by_itself(request)
        elif request.fua:
            self._exclude(partial(self._drain, request, number, number), request)
        elif self._held.bytes > LIMIT_BYTES:
            self._flush(request)
        else:
            self._end(request)

    def _flush(self, request: Io) -> None:
        self._exclude(partial(self._drain, request, self._held.number, None), request)

    def _exclude(self, begin: Callable[[], None], request: Io | None) -> None:
        """Begin this when the requests before it have ended."""
        self._exclusive.append((begin, request))
        if len(self._exclusive) == 1:
            begin()

    def _ended(self, request: Io, error: int) -> None:
        """End the request that was under way, and begin the next."""
        request.error = error
        self._next()
        request.notify(request)  # type: ignore[misc]

    def _next(self) -> None:
        self._exclusive.popleft()
        if self._exclusive:
            self._exclusive[0][0]()

    def _drain(self, request: Io, upto: int, number: int | None) -> None:
        """Write down what was written before the request, or write `number` alone; then end it.

        What came after it stays: there may be a range to be zeroed in between.
        """
        if number is None:
            blocks = self._held.newest(upto)
        else:  # unless it was written down meanwhile, by a flush that came before
            blocks = self._held.written_by(number, self._blocks(request))

        def drained(error: int) -> None:
            if not error:
                self._tell(lambda log: self._note_writes(log, upto, number))
                self._held.settle(blocks, upto)
            self._ended(request, error)

        self._write_down(blocks, drained)

    def _note_writes(self, log: Log, upto: int, number: int | None) -> None:
        """Note the writes that are durable now: all of them, or one."""
        for write, blocks in self._held.by_write().items():
            if write == number or (number is None and write <= upto):
                self._note(log, blocks, fua=number is not None)
        if number is None:
            log.flush()

    def _note(self, log: Log, blocks: Blocks, *, fua: bool = False) -> None:
        for run in runs(blocks, len(blocks)):
            log.write(run.start, b"".join([blocks[block] for block in run]), fua=fua)

    def _tell(self, what: Callable[[Log], object]) -> None:
        if self.log is not None:
            try:
                what(self.log)
            except Exception as error:
                self.log = None
                self._reactor.report(error)

    def _clear(self, request: Io, upto: int) -> None:
        """Zero or discard below, and forget what was written there before the request."""
        blocks = self._blocks(request)

        def cleared(io: Io) -> None:
            if not io.error:
                self._held.settle_range(blocks, upto)
                self._tell(lambda log: log.discard(blocks.start, len(blocks)))
            self._ended(request, io.error)

        region = IoRegion(self.below, request.sector, request.count)
        self._reactor.submit(Io(request.op, region, notify=cleared))

    def _lose(self, seed: int | None, done: Callable[[], object]) -> None:
        left = self._held.survivors(seed)
        kept: Blocks = {}
        for blocks in left:
            kept |= blocks

        def note(log: Log) -> None:
            for blocks in left:
                self._note(log, blocks)
            log.mark("dmcopy-cut" if seed is None else f"dmcopy-cut {seed}")

        def back(error: int) -> None:
            self._held.clear()
            self.writes = self.flushes = self.cut_after_writes = self.cut_at_flush = 0
            self._off = False
            self._next()
            if error:
                self._reactor.report(DeviceError(self.path, "write what is kept", error))
            done()

        self._tell(note)
        self._write_down(kept, back)

    def _write_down(self, blocks: Blocks, done: Callable[[int], object]) -> None:
        """Write blocks below, in their order, neighbours together; `done` is given an errno."""
        left = deque(runs(sorted(blocks), _STAGE_BYTES // self.logical_block_size))
        if not left:
            self._reactor.call_soon(partial(done, 0))
            return
        if self._stage is None:
            self._stage = Memory(_STAGE_BYTES // PAGE_SIZE)
        stage = self._stage

        def step(before: Io | None = None) -> None:
            error = 0 if before is None else before.error
            if error or not left:
                done(error)
                return
            run = left.popleft()
            data = b"".join([blocks[block] for block in run])
            stage.view[: len(data)] = data
            sector, count = run.start * self._block_sectors, len(run) * self._block_sectors
            region = IoRegion(self.below, sector, count)
            self._reactor.submit(Io(WRITE, region, stage, [(0, len(data))], step))

        step()
