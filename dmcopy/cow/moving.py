"""Many copies, of any size and from several devices to one, kept going on a reactor.

    moves → windows of 1 MiB, eight at once → the reads of a window → all its writes

A window has 2 MiB of memory, which makes 16 MiB, however much is moved.

As for any copy, threads are quickest for long requests, and the ring for short ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Final, NamedTuple

from dmcopy.cow.gathering import Move
from dmcopy.cow.window import WINDOW_SECTORS, Window, failed
from dmcopy.io import whole
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device, IoRegion
from dmcopy.io.request import Io, Memory, Op
from dmcopy.transfer.settings import BULK_SECTORS
from dmcopy.units import PAGE_SIZE, SECTOR_SHIFT

WINDOWS: Final = 8
WRITE_DEPTH: Final = 64
PROGRESS_SECONDS: Final = 0.1
FLUSH_SECONDS: Final = 3600.0
"""A flush of a file has all of it to write, through the page cache."""

Observer = Callable[[int, float], object]
"""Told how many sectors have been moved, and in how many seconds."""


class Write(NamedTuple):
    """Write `data`, whole blocks, from `sector` on."""

    sector: int
    data: bytes


class Mover:
    """Does moves to `dest`, and single writes and flushes in between.

    `chunk_size`: of what could not be read, it is told which chunk of so many sectors. `sectors`
    counts what was moved; `interrupted` says whether `interrupt` ended it.
    """

    def __init__(
        self, reactor: Reactor, dest: Device, *, chunk_size: int, observer: Observer | None = None
    ) -> None:
        self.sectors = 0
        self.interrupted = False
        self._reactor = reactor
        self._observe = observer
        self._began = self._told = self._reactor.time()
        self._whole = min(chunk_size, WINDOW_SECTORS)
        self._idle = [Window(reactor, dest, chunk_size, self._ended) for _ in range(WINDOWS)]
        self._active = 0
        self._moves: Iterator[Move] = iter(())
        self._rest: Move | None = None
        self._filling = False
        self._error: BaseException | None = None

    def run(self, moves: Iterable[Move]) -> None:
        """Do all moves, in any order; return when they have ended, or when interrupted.

        Raises DeviceError for the first that fails, when those under way have ended.
        """
        self.start(moves)
        self.finish()

    def start(self, moves: Iterable[Move]) -> None:
        """Begin to do moves; they go on while anything is waited for here."""
        self._moves, self._rest = iter(moves), None
        self._filling = not self.interrupted
        self._reactor.call_soon(self._fill)

    def finish(self) -> None:
        """Wait for what `start` began; see `run`."""
        self._reactor.run_until(lambda: not (self._filling or self._active))
        self._tell()
        if self._error is not None:
            raise self._error

    def interrupt(self) -> None:
        """Start nothing more; what is under way is finished. From a signal handler, too."""
        self.interrupted = True
        self._filling = False

    def close(self) -> None:
        """Wait for what is under way; nothing more is started."""
        self._filling = False
        self._reactor.run_until(lambda: not self._active)

    def flush(self, device: Device) -> None:
        """Make what was written to a device durable. Raises DeviceError."""
        request = Io(Op.FLUSH, IoRegion(device, 0, 0))
        whole.perform(self._reactor, request, timeout=FLUSH_SECONDS)

    def write(self, device: Device, writes: Sequence[Write]) -> None:
        """Do writes of whole blocks, several at once, in any order. Raises DeviceError."""
        for start in range(0, len(writes), WRITE_DEPTH):
            self._write(device, writes[start : start + WRITE_DEPTH])

    def _write(self, device: Device, writes: Sequence[Write]) -> None:
        pages = [-(-len(write.data) // PAGE_SIZE) for write in writes]
        memory, done = Memory(sum(pages)), list[Io]()
        at = 0
        for write, size in zip(writes, pages, strict=True):
            extents = [(at, len(write.data))]
            memory.fill(extents, write.data)
            region = IoRegion(device, write.sector, len(write.data) >> SECTOR_SHIFT)
            self._reactor.submit(Io(Op.WRITE, region, memory, extents, done.append))
            at += size * PAGE_SIZE
        self._reactor.run_until(lambda: len(done) == len(writes))
        memory.close()
        for request in done:
            if request.error:
                raise failed("write", request)

    def _fill(self) -> None:
        """Keep all windows busy."""
        try:
            while self._filling and self._idle:
                moves = self._take()
                if not moves:
                    self._filling = False
                    break
                self._idle[-1].begin(moves)
                self._idle.pop()
                self._active += 1
        except BaseException as error:  # in a callback: `finish` raises it
            self._fail(error)

    def _take(self) -> list[Move]:
        """Return the moves of a window; of one that is too long, as many whole chunks as fit."""
        moves: list[Move] = []
        left = WINDOW_SECTORS
        while left and (move := self._rest or next(self._moves, None)):
            self._rest = None
            if move.count > left:
                fits = left - left % self._whole
                source, sector, dest, count = move
                self._rest = Move(source, sector + fits, dest + fits, count - fits)
                move = Move(source, sector, dest, fits)
                left = fits
            if move.count:
                moves.append(move)
            left -= move.count
        return moves

    def _ended(self, window: Window) -> None:
        self._active -= 1
        self._idle.append(window)
        if window.error is None:
            self.sectors += window.sectors
        else:
            self._fail(window.error)
        if self._observe is not None and self._reactor.time() >= self._told + PROGRESS_SECONDS:
            self._tell()
        self._fill()

    def _fail(self, error: BaseException) -> None:
        self._filling = False
        self._error = self._error or error

    def _tell(self) -> None:
        self._told = self._reactor.time()
        if self._observe is not None:
            self._observe(self.sectors, self._told - self._began)


@contextmanager
def make_mover(
    dest: Device, *, chunk_size: int, mean: int, observer: Observer | None = None
) -> Iterator[Mover]:
    """Yield a mover for moves of about `mean` sectors, on a reactor of its own."""
    bulk = mean >= BULK_SECTORS and "DMCOPY_IO" not in os.environ
    with (
        Reactor("threads" if bulk else None) as reactor,
        closing(Mover(reactor, dest, chunk_size=chunk_size, observer=observer)) as mover,
    ):
        yield mover
