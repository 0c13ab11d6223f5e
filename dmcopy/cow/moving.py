"""Many copies, of any size and between several devices, kept going on one kcopyd client."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from dmcopy.errors import DeviceError
from dmcopy.io import whole
from dmcopy.io.backend import probe
from dmcopy.io.region import Device, IoRegion
from dmcopy.io.request import Io, Memory, Op
from dmcopy.kcopyd import Client, CopyJob
from dmcopy.transfer.settings import BULK_SECTORS, choose
from dmcopy.units import PAGE_SIZE, SECTOR_SHIFT

PIECE_SECTORS: Final = 2048
"""The longest move: 1 MiB, the largest sub-job."""
WRITE_DEPTH: Final = 64
SMALL_DEPTH: Final = 32
"""Requests in flight where moves are small, and each is mostly overhead."""
PROGRESS_SECONDS: Final = 0.1
FLUSH_SECONDS: Final = 3600.0
"""A flush of a file has all of it to write, through the page cache."""

Observer = Callable[[int, float], object]
"""Told how many sectors have been moved, and in how many seconds."""


class Move(NamedTuple):
    """Copy one region to another, which is as long."""

    source: IoRegion
    dest: IoRegion

    def cut(self) -> Iterator[Move]:
        """Yield it in pieces that are worth one request each."""
        if self.source.count <= PIECE_SECTORS:
            yield self
            return
        for start in range(0, self.source.count, PIECE_SECTORS):
            count = min(PIECE_SECTORS, self.source.count - start)
            yield Move(self.source.slice(start, count), self.dest.slice(start, count))


class Write(NamedTuple):
    """Write `data`, whole blocks, from `sector` on."""

    sector: int
    data: bytes


class Mover:
    """Does moves on `client`, and single writes and flushes in between.

    `outstanding` is how many moves the client is given at once. `sectors` counts what was moved;
    `interrupted` says whether `interrupt` ended it.
    """

    def __init__(
        self, client: Client, *, outstanding: int = 16, observer: Observer | None = None
    ) -> None:
        self.sectors = 0
        self.interrupted = False
        self._client = client
        self._reactor = client.reactor
        self._outstanding = outstanding
        self._observe = observer
        self._began = self._told = self._reactor.time()
        self._active: set[CopyJob] = set()
        self._moves: Iterator[Move] = iter(())
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
        self._moves = iter(moves)
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
        self._reactor.call_soon_threadsafe(self._cancel)

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
                raise _failed("write", request.region, request.error)

    def _fill(self) -> None:
        """Keep the client busy."""
        try:
            while self._filling and len(self._active) < self._outstanding:
                move = next(self._moves, None)
                if move is None:
                    self._filling = False
                    break
                job = self._client.copy(move.source, (move.dest,))
                self._active.add(job)
                job.add_done_callback(functools.partial(self._done, job))
        except BaseException as error:  # in a callback: `run` raises it
            self._fail(error)

    def _done(self, job: CopyJob) -> None:
        self._active.remove(job)
        if job.ok:
            self.sectors += job.count
        elif job.read_failures:
            self._fail(_failed("read", *job.read_failures[0]))
        elif job.write_failures and not job.cancelled:
            self._fail(_failed("write", *job.write_failures[0][1]))
        if self._observe is not None and self._reactor.time() >= self._told + PROGRESS_SECONDS:
            self._tell()
        self._fill()

    def _fail(self, error: BaseException) -> None:
        self._filling = False
        self._error = self._error or error
        self._cancel()

    def _cancel(self) -> None:
        for job in list(self._active):
            job.cancel()

    def _tell(self) -> None:
        self._told = self._reactor.time()
        if self._observe is not None:
            self._observe(self.sectors, self._told - self._began)


@contextmanager
def make_mover(
    source: IoRegion, dest: IoRegion, *, mean: int, observer: Observer | None = None
) -> Iterator[Mover]:
    """Yield a mover for moves of about `mean` sectors, on a client and a reactor of its own."""
    small = mean < BULK_SECTORS
    # What is quickest for long moves, and so chosen by itself, is not for short ones.
    ring = small and "DMCOPY_IO" not in os.environ and not probe()["uring"]
    settings = choose(
        source,
        (dest,),
        backend="uring" if ring else None,
        depth=SMALL_DEPTH if small else None,
    )
    with (
        settings.reactor() as reactor,
        Client(
            settings.pages,
            reactor=reactor,
            sub_job_sectors=settings.sub_job,
            depth=settings.depth,
        ) as client,
    ):
        yield Mover(client, outstanding=4 * settings.depth, observer=observer)


def _failed(action: str, region: IoRegion, errno: int) -> DeviceError:
    what = f"{action} {region.count} sectors from {region.sector}"
    return DeviceError(region.device.path, what, errno)
