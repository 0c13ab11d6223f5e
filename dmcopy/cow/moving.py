"""What extract and merge do to devices: moves, through a kcopyd client, and writes and flushes.

    moves → Client.copy_list → 8 windows of 1 MiB under way

A window has 2 MiB of the client's pages, which makes 16 MiB, however much is moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Final, NamedTuple

from dmcopy.errors import DeviceError
from dmcopy.io import whole
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device, IoRegion
from dmcopy.io.request import Io, Memory, Op
from dmcopy.kcopyd.client import MAX_SUB_JOB_SECTORS, Client
from dmcopy.kcopyd.listjob import ListJob
from dmcopy.kcopyd.moves import Move
from dmcopy.kcopyd.throttle import SLEEP_SECONDS, Throttle
from dmcopy.observing import shielded
from dmcopy.units import PAGE_SECTORS, PAGE_SIZE, SECTOR_SHIFT

WINDOWS: Final = 8
WINDOW_SECTORS: Final = MAX_SUB_JOB_SECTORS
WINDOWS_A_SECOND: Final = 8
"""The fewest that begin each second where there is a limit: no long pauses, no bursts."""
WRITE_DEPTH: Final = 64
PROGRESS_SECONDS: Final = 0.1
FLUSH_SECONDS: Final = 3600.0
"""A flush of a file has all of it to write, through the page cache."""

MoveObserver = Callable[[int, float], object]
"""Told how many sectors have been moved, and in how many seconds."""


class Write(NamedTuple):
    """Write `data`, whole blocks, from `sector` on."""

    sector: int
    data: bytes


class RateLimit(Throttle):
    """Lets windows of `sectors` begin no faster than `limit` bytes a second."""

    def __init__(self, limit: int, sectors: int) -> None:
        super().__init__()
        self._seconds = (sectors << SECTOR_SHIFT) / limit
        self._due = 0.0

    def must_wait(self, now: float, slept: int) -> bool:
        """Whether the next window must wait; if not, it is taken to begin now."""
        del slept
        if now < self._due:
            return True
        # How much unused time may be made up for: it is asked no more often.
        self._due = max(self._due, now - SLEEP_SECONDS) + self._seconds
        return False


class Mover:
    """Does moves to `dest`, and single writes and flushes in between.

    `chunk_size`: errors name the chunk of this many sectors that could not be read. `limit`: the
    most bytes a second, 0: as many as there are. `sectors` counts what was moved; `interrupted`
    says whether `interrupt` ended it.
    """

    def __init__(
        self,
        reactor: Reactor,
        dest: Device,
        *,
        chunk_size: int,
        limit: int = 0,
        observer: MoveObserver | None = None,
    ) -> None:
        self.interrupted = False
        self._reactor = reactor
        self._dest = dest
        self._chunk_size = chunk_size
        self._observe = shielded(observer) if observer else None
        self._began = reactor.time()
        pages = WINDOWS * 2 * WINDOW_SECTORS // PAGE_SECTORS
        window = _window(limit, dest)
        self._client = Client(
            pages,
            reactor=reactor,
            sub_job_sectors=window,
            depth=WINDOWS,
            throttle=RateLimit(limit, window) if limit else None,
        )
        self._moved = 0
        self._job: ListJob | None = None
        self._timer = reactor.call_later(0, self._tick)

    @property
    def sectors(self) -> int:
        """How many sectors were moved."""
        return self._moved + (self._job.sectors if self._job is not None else 0)

    def run(self, moves: Iterable[Move]) -> None:
        """Do all moves, in any order; return when they have ended, or when interrupted.

        Raises DeviceError for the first that fails, when those under way have ended.
        """
        self.start(moves)
        self.finish()

    def start(self, moves: Iterable[Move]) -> None:
        """Begin to do moves; they proceed while anything is waited for here."""
        moves = () if self.interrupted else moves
        self._job = self._client.copy_list(moves, self._dest, unit=self._chunk_size)

    def finish(self) -> None:
        """Wait for what `start` began; see `run`."""
        assert self._job is not None
        job = self._job.wait()
        self._moved, self._job = self.sectors, None
        self._tell()
        self._raise(job)

    def interrupt(self) -> None:
        """Start nothing more; what is under way is finished. From a signal handler, too."""
        self.interrupted = True
        self._reactor.call_soon_threadsafe(self._cancel)

    def close(self) -> None:
        """Wait for what is under way; nothing more is started."""
        self._cancel()
        self._timer.cancel()
        self._client.destroy()

    def flush(self, device: Device) -> None:
        """Make what was written to a device durable. Raises DeviceError."""
        request = Io(Op.FLUSH, IoRegion(device, 0, 0))
        whole.perform(self._reactor, request, timeout=FLUSH_SECONDS)

    def write(self, device: Device, writes: Sequence[Write]) -> None:
        """Do writes of whole blocks, several side by side, in any order. Raises DeviceError."""
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

    def _cancel(self) -> None:
        if self._job is not None:
            self._job.cancel()

    def _raise(self, job: ListJob) -> None:
        """Raise what went wrong first: on the way to the moves, of the reads, of the writes."""
        if job.failure is not None:
            raise job.failure
        if job.unread:
            move, errno = min(job.unread, key=lambda failed: failed[0].dest)
            chunk = f"this is chunk {move.dest // self._chunk_size} of the snapshot"
            raise _failed("read", IoRegion(move.source, move.sector, move.count), errno, chunk)
        for _, (region, errno) in job.write_failures:
            raise _failed("write", region, errno)

    def _tick(self) -> None:
        self._tell()
        self._timer = self._reactor.call_later(PROGRESS_SECONDS, self._tick)

    def _tell(self) -> None:
        if self._observe is not None:
            self._observe(self.sectors, self._reactor.time() - self._began)


@contextmanager
def make_mover(
    dest: Device,
    *,
    chunk_size: int,
    limit: int = 0,
    observer: MoveObserver | None = None,
) -> Iterator[Mover]:
    """Yield a mover on a reactor of its own."""
    with (
        Reactor() as reactor,
        closing(
            Mover(reactor, dest, chunk_size=chunk_size, limit=limit, observer=observer)
        ) as mover,
    ):
        yield mover


def _window(limit: int, dest: Device) -> int:
    """Return the longest window: with a limit, one of which some begin each second."""
    if not limit:
        return WINDOW_SECTORS
    smallest = max(PAGE_SECTORS, dest.logical_block_size >> SECTOR_SHIFT)
    often = (limit // WINDOWS_A_SECOND >> SECTOR_SHIFT) // smallest * smallest
    return min(WINDOW_SECTORS, max(often, smallest))


def _failed(action: str, region: IoRegion, errno: int, hint: str = "") -> DeviceError:
    what = f"{action} {region.count} sectors from {region.sector}"
    return DeviceError(region.device.path, what, errno, hint)
