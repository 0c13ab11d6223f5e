"""A job of many regions: moves, as many as there are, that are done by the window.

    moves → windows of at most a sub-job → few reads → few writes

The moves come from an iterator, which is asked for no more than eight windows ahead: so a list has
no length that would be too much. (The kernel has no such job. Its snapshot-merge gives kcopyd one
run of consecutive chunks after the other; `MergedCopy` puts together only what is consecutive on
both sides, and a COW's chunks seldom do.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dmcopy.errors import UsageError
from dmcopy.io.region import Device, IoRegion
from dmcopy.io.request import ListCopyIo, Memory, Part
from dmcopy.kcopyd.job import Failure, Job, Notify
from dmcopy.kcopyd.moves import Move, Placed, gather, scatter
from dmcopy.kcopyd.queued import QueuedCopy
from dmcopy.kcopyd.subjob import cut
from dmcopy.units import PAGE_SECTORS, SECTOR_SHIFT

if TYPE_CHECKING:
    from dmcopy.kcopyd.client import Client


class ListJob(Job):
    """Moves to `dest` that `Client.copy_list` started.

    `sectors`: how many have arrived. `unread`: the moves, of `unit` sectors at most, that could not
    be read, and each one's errno.
    """

    sectors = 0

    def __init__(
        self,
        client: Client,
        moves: Iterable[Move],
        dest: Device,
        unit: int,
        callback: Notify | None,
        context: Any,
    ) -> None:
        self.client = client
        self.dest = dest
        self.unit = unit
        self.callback = callback
        self.context = context
        self.unread: list[tuple[Move, int]] = []
        self.limit = _limit(client, dest)
        self._moves = iter(moves)
        self._rest: Move | None = None

    def __str__(self) -> str:
        return f"copy of a list to {self.dest.path}"

    def next_window(self, memory: Memory, notify: Callable[[Window], object]) -> Window | None:
        """Return the next moves as a window; None when there are none, or getting them failed."""
        try:
            moves = self._take()
            return Window(self, moves, memory, notify) if moves else None
        except BaseException as error:  # we are in a callback: who waits for the job will ask
            self.break_off(error)
            if not isinstance(error, Exception):
                self.client.reactor.report(error)
            return None

    def book(self, window: Window) -> None:
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


class Window(QueuedCopy, ListCopyIo):
    """Moves that are under way together: all reads, then all writes.

    It is given pages for twice what it moves, because what lies between two reads is read along.
    """

    alone = True
    is_unit = False

    def __init__(
        self,
        job: ListJob,
        moves: Sequence[Move],
        memory: Memory,
        notify: Callable[[Any], object],
    ) -> None:
        device, sector, _, _ = moves[0]
        super().__init__(IoRegion(device, sector, 0), (), memory, (), notify)
        self.job = job
        self.moves = moves
        self.bytes = 2 * job.limit << SECTOR_SHIFT
        self.sectors = sum([move[3] for move in moves])
        self.written: Sequence[Part] = ()
        self._placed: Sequence[Placed] = ()
        lowest = min([move[2] for move in moves])
        highest = max([move[2] + move[3] for move in moves])
        IoRegion(job.dest, lowest, highest - lowest).check(write=True)

    def units(self) -> Iterator[Window]:
        """Yield its units, each a window to be tried once more: what lies between need not be
        readable.
        """
        unit = self.job.unit
        for source, sector, dest, count in self.moves:
            for done in range(0, count, unit):
                one = Move(source, sector + done, dest + done, min(unit, count - done))
                window = Window(self.job, [one], self.memory, self.notify)
                window.is_unit = True
                yield window

    def reads(self) -> Sequence[Part]:
        """Return the fewest reads; only now is it known which pages there are."""
        whole = len(self.extents) == 1
        begin = self.extents[0][0] >> SECTOR_SHIFT if whole else 0
        reads, self._placed = gather(self.moves, self.job.limit // 2, begin)
        return reads if whole else self._spread(reads)

    def writes(self) -> Sequence[Part]:
        """Return the fewest writes of what `reads` brought."""
        writes = scatter(self._placed, self.job.dest)
        self.written = writes if len(self.extents) == 1 else self._spread(writes)
        return self.written

    def _spread(self, parts: Sequence[Part]) -> list[Part]:
        """Lay parts of one long run over the runs of pages that there are."""
        return [
            Part(region, [one for extent in extents for one in cut(self.extents, *extent)])
            for region, extents in parts
        ]


def _limit(client: Client, dest: Device) -> int:
    """Return how many sectors are a window. Raises UsageError where that is less than a block."""
    pages = min(client.sub_job_sectors // PAGE_SECTORS, client.pool.total // 2)
    if pages * PAGE_SECTORS < dest.logical_block_size >> SECTOR_SHIFT or not pages:
        raise UsageError(
            f"a client of {client.pool.total} pages cannot copy lists to {dest.path}, which has "
            f"blocks of {dest.logical_block_size} bytes: give it more pages"
        )
    return pages * PAGE_SECTORS
