"""A job of many regions: moves, as many as there are, that are done by the window.

    moves → windows of at most a sub-job → few reads → few writes

The moves come from an iterator, which is asked for no more than eight windows ahead: so a list has
no length that would be too much. (The kernel has no such job. Its snapshot-merge gives kcopyd one
run of consecutive chunks after the other; `MergedCopy` puts together only what is consecutive on
both sides, and a COW's chunks seldom do.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dmcopy.errors import UsageError
from dmcopy.io.region import Device, IoRegion
from dmcopy.io.request import ListCopyIo, Part, cut
from dmcopy.kcopyd.job import Failure, Job, Notify, Owner, Totals, Work
from dmcopy.kcopyd.moves import Move, Placed, gather, scatter
from dmcopy.units import PAGE_SECTORS, SECTOR_SHIFT


class ListJob(Job):
    """Moves to `dest` that `Client.copy_list` started.

    `sectors`: how many have arrived. `unread`: the moves, of `unit` sectors at most, that could not
    be read, and each one's errno.
    """

    sectors = 0
    has_more = True

    def __init__(
        self,
        client: Owner,
        moves: Iterable[Move],
        dest: Device,
        unit: int,
        limit: int,
        callback: Notify | None,
        context: Any,
    ) -> None:
        self.client = client
        self.dest = dest
        self.unit = unit
        self.limit = limit
        self.callback = callback
        self.context = context
        self.unread: list[tuple[Move, int]] = []
        self._moves = iter(moves)
        self._rest: Move | None = None

    def __str__(self) -> str:
        return f"copy of a list to {self.dest.path}"

    def cut(self) -> Window | None:
        """Return the next moves as a window; None when there are none, or getting them failed."""
        try:
            moves = self._take()
            self.has_more = bool(moves)
            return Window(self, moves) if moves else None
        except BaseException as error:  # in a callback: what waits for the job will ask
            self.break_off(error)
            if not isinstance(error, Exception):
                self.client.reactor.report(error)
            return None

    def book_window(self, window: Window) -> None:
        """Note what became of a window."""
        if window.error:
            self.read_err = 1
            self.unread.append((window.moves[0], window.error))
        for index, error in window.write_errors.items():
            self.write_err = 1
            failure = Failure(window.written[index].region, error)
            self.write_failures = [*self.write_failures, (0, failure)]
        if not window.error and not window.write_errors:
            self.sectors += window.sectors

    def _take(self) -> list[Move]:
        """Return the moves of a window; of one that is too long, as many whole units as fit."""
        moves: list[Move] = []
        left, whole = self.limit, min(self.unit, self.limit)
        while left and (move := self._rest or next(self._moves, None)):
            self._rest = None
            if move[3] > left:
                source, sector, dest, count = move
                left -= left % whole
                self._rest = Move(source, sector + left, dest + left, count - left)
                move = Move(source, sector, dest, left)
            if move[3]:
                moves.append(move)
                left -= move[3]
        return moves


class Window(Work, ListCopyIo):
    """Moves that are under way together: all reads, then all writes.

    It gets twice the pages that it moves, because the gap between two reads is read along.
    """

    alone = True
    is_unit = False

    def __init__(self, job: ListJob, moves: Sequence[Move]) -> None:
        device, sector, _, _ = moves[0]
        super().__init__(IoRegion(device, sector, 0), ())
        self._job = job
        self.moves = moves
        self.bytes = 2 * job.limit << SECTOR_SHIFT
        self.sectors = sum([move[3] for move in moves])
        self.written: Sequence[Part] = ()
        self._placed: Sequence[Placed] = ()
        lowest = min([move[2] for move in moves])
        highest = max([move[2] + move[3] for move in moves])
        IoRegion(job.dest, lowest, highest - lowest).check(write=True)

    @property
    def job(self) -> ListJob:
        return self._job

    def book(self, totals: Totals) -> ListJob:
        """Note the outcome of each unit: each tells by itself whether it could be read."""
        if self.error and not self.is_unit:
            self.again = list(self._units())
            return self._job
        self._job.book_window(self)
        if not self.error:
            totals.sectors_read += self.sectors
            totals.sectors_written += 0 if self.write_errors else self.sectors
        return self._job

    def _units(self) -> Iterator[Window]:
        """Yield its units, each a window to be tried once more: what lies between need not be
        readable.
        """
        unit = self._job.unit
        for source, sector, dest, count in self.moves:
            for done in range(0, count, unit):
                one = Move(source, sector + done, dest + done, min(unit, count - done))
                window = Window(self._job, [one])
                window.is_unit = True
                yield window

    def reads(self) -> Sequence[Part]:
        """Return the fewest reads; only now is it known which pages there are."""
        whole = len(self.extents) == 1
        begin = self.extents[0][0] >> SECTOR_SHIFT if whole else 0
        reads, self._placed = gather(self.moves, self._job.limit // 2, begin)
        return reads if whole else self._spread(reads)

    def writes(self) -> Sequence[Part]:
        """Return the fewest writes of what `reads` brought."""
        writes = scatter(self._placed, self._job.dest)
        self.written = writes if len(self.extents) == 1 else self._spread(writes)
        return self.written

    def _spread(self, parts: Sequence[Part]) -> list[Part]:
        """Lay parts of one long run over the runs of pages that there are."""
        return [
            Part(region, [one for extent in extents for one in cut(self.extents, *extent)])
            for region, extents in parts
        ]


def window_sectors(dest: Device, sub_job_sectors: int, pages: int) -> int:
    """Return how many sectors are a window, of which two fit in `pages`.

    Raises UsageError where that is less than a block of `dest`.
    """
    sectors = min(sub_job_sectors // PAGE_SECTORS, pages // 2) * PAGE_SECTORS
    if sectors < dest.logical_block_size >> SECTOR_SHIFT:
        raise UsageError(
            f"a client of {pages} pages cannot copy lists to {dest.path}, which has "
            f"blocks of {dest.logical_block_size} bytes: give it more pages"
        )
    return sectors
