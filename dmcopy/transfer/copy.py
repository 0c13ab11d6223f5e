"""The copy of a whole range: which piece is next, and what an error means.

    plan → pieces, ascending → one copy job each → booked per destination → flushed → finished

Every piece is a copy job of at most one sub-job, so it was written to a destination as a whole or
it was not. What goes wrong, under `on_error`:

             stop                                    skip
    read     the copy ends; what is in flight        the piece is halved until single blocks are
             is finished                             left; for the bad ones nothing is written
    write    that destination is dropped,            the piece is halved for that destination until
             the others continue                     only the blocks that cannot be written are left
    gone     as for stop: a device that is not there any more will not take another block either

Before anything is called done every destination is flushed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from dmcopy.kcopyd import Client, CopyJob, Flag
from dmcopy.observing import shielded
from dmcopy.ranges import RangeSet
from dmcopy.transfer import events
from dmcopy.transfer.destination import GONE, HOPELESS, Destination, Failures
from dmcopy.transfer.durability import INTERVAL_SECONDS, Durability
from dmcopy.transfer.pace import Pace
from dmcopy.transfer.plan import Piece, TransferPlan

OnError = Literal["stop", "skip"]
PATIENCE_SECONDS: Final = 0.6
"""How long an interrupted copy waits for what is in flight."""
PROGRESS_SECONDS: Final = 0.1


class Attempt:
    """A piece on its way, and the job that carries it."""

    __slots__ = ("job", "piece")

    def __init__(self, piece: Piece) -> None:
        self.piece = piece
        self.job: CopyJob | None = None


class Transfer:
    """A copy as `plan` says, on `client`; `run` does it.

    `outstanding`: the most jobs that the client has at a time. `limit`: the most bytes of the range
    that begin in a second, 0: as many as there are. `saved()` is called whenever more has
    become durable, about every `interval` seconds, and once at the end.

    Attributes:
        dests: what became of each destination.
        bad: offsets of the source that cannot be read and were given up, under skip: whole blocks.
        unread: pieces that could not be read and were not looked into, under stop.
        interrupted, abandoned: ended by `interrupt`; before what was in flight had ended.
        source_error: the errno that ended the copy, 0 when the source was not the reason.
        failure: what a callback raised; `run` raises it.
    """

    def __init__(
        self,
        client: Client,
        plan: TransferPlan,
        *,
        on_error: OnError = "stop",
        observer: events.TransferObserver = events.ignore,
        saved: Callable[[Transfer], object] | None = None,
        interval: float = INTERVAL_SECONDS,
        outstanding: int = 16,
        limit: int = 0,
    ) -> None:
        self.plan = plan
        self.dests = [Destination(region) for region in plan.dests]
        self.bad = Failures()
        self.unread = Failures()
        self.source_error = 0
        self.interrupted = False
        self.abandoned = False
        self.finished = False
        self.failure: BaseException | None = None
        self.seconds = 0.0
        self._client = client
        self._reactor = client.reactor
        self._skip = on_error == "skip"
        self._observe = shielded(observer)
        self._saved = saved
        self._pace = Pace(self._reactor, limit, self._fill)
        self._interval = interval
        self._outstanding = outstanding
        self._flags = int(Flag.SPARSE) if plan.sparse else 0
        self._again: list[Piece] = []
        self._active: set[Attempt] = set()
        self._stopping = False
        self._ending = False
        self._began = 0.0
        self._already = 0
        self._durability = Durability(self._reactor, self.dests, self._save, self._flush_failed)

    def run(self) -> None:
        """Copy; return when it is finished, whatever the outcome.

        Raises what a callback raised: what is in flight continues, and nothing more begins.
        """
        try:
            self.start()
            self._reactor.run_until(lambda: self.finished)
        except BaseException as error:
            self._fail(error)
        if self.failure is not None:
            raise self.failure

    def start(self) -> None:
        """Begin; from here on the reactor drives it, until `finished`."""
        self._began = self._reactor.time()
        self._already = self._settled()
        needs = [self._need(*each) for each in zip(self.dests, self.plan.zeroed(), strict=True)]
        for start, end in self.bad.ranges():
            for need in needs:
                need.remove(start, end)
        self._pieces = self.plan.pieces(needs)
        self._announce()
        if self._saved is not None:
            self._durability.start(self._interval)
        self._reactor.call_soon(self._fill)
        self._tick()

    def _need(self, dest: Destination, zeroed: RangeSet) -> RangeSet:
        """Return what is to be written to `dest`; it has already what it lacks only by the book."""
        need = dest.needs()
        for start, end in need & zeroed:
            dest.wrote(start, end)
        return need & RangeSet(zeroed.gaps(0, dest.region.count))

    def interrupt(self) -> None:
        """End it soon: start nothing more, wait a moment for what is in flight."""
        if self.finished or self.interrupted:
            return
        self.interrupted = True
        self._reactor.call_later(PATIENCE_SECONDS, self._abandon)
        self._stop()
        self._fill()

    def _fill(self) -> None:
        """Keep the client busy, and end when there is nothing left to do."""
        while not self._stopping and len(self._active) < self._outstanding:
            piece = self._next()
            if piece is None:
                break
            if not self._pace.may_begin():
                self._again.append(piece)
                return
            self._pace.began(piece.length)
            self._begin(piece)
        if self._active or self._ending or self.finished:
            return
        if self._stopping or self._pace.may_begin():
            self._ending = True
            self._durability.flush(self._finish)

    def _next(self) -> Piece | None:
        """Return the next piece that some living destination needs."""
        while True:
            piece = self._again.pop() if self._again else next(self._pieces, None)
            if piece is None:
                return None
            targets = tuple(index for index in piece.targets if not self.dests[index].error)
            if targets:
                return piece._replace(targets=targets)
            if all(dest.error for dest in self.dests):
                return None

    def _begin(self, piece: Piece) -> None:
        start, length, targets, zero = piece
        dests = [self.plan.dests[index].slice(start, length) for index in targets]
        attempt = Attempt(piece)
        self._active.add(attempt)
        if zero or self.plan.source is None:
            attempt.job = self._client.zero(dests, 0, self._done, attempt)
        else:
            source = self.plan.source.slice(start, length)
            attempt.job = self._client.copy(source, dests, self._flags, self._done, attempt)

    def _done(self, read_err: int, write_err: int, attempt: Attempt) -> None:
        try:
            self._settle(read_err, write_err, attempt)
        except BaseException as error:  # it would only be logged, and the end would never come
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """End now, because of a fault in here."""
        self.failure = self.failure or error
        self.finished = True
        self._durability.stop()
        self._stop()

    def _settle(self, read_err: int, write_err: int, attempt: Attempt) -> None:
        self._active.remove(attempt)
        job = attempt.job
        assert job is not None
        if not job.cancelled or read_err or write_err:
            self._book(attempt.piece, job, write_err)
        else:  # what was under way already when it was cancelled has been written
            self._book_reached(attempt.piece, job)
        self._fill()

    def _book(self, piece: Piece, job: CopyJob, write_err: int) -> None:
        if job.read_err:
            self._read_failed(piece, job.read_failures[0].errno)
            return
        errors = {index: failure.errno for index, failure in job.write_failures}
        for place, index in enumerate(piece.targets):
            if write_err >> place & 1:
                self._write_failed(piece, index, errors[place])
            else:
                self.dests[index].wrote(piece.start, piece.end)

    def _book_reached(self, piece: Piece, job: CopyJob) -> None:
        for place, index in enumerate(piece.targets):
            if job.progress()[place] == piece.length:
                self.dests[index].wrote(piece.start, piece.end)

    def _read_failed(self, piece: Piece, error: int) -> None:
        source = self.plan.source
        assert source is not None
        if self._skip and error not in GONE:
            if piece.length > self.plan.block:
                self._split(piece)
                return
            self.bad.add(piece.start, piece.end, error)
        else:
            self.unread.add(piece.start, piece.end, error)
            self.source_error = self.source_error or error
            self._stop()
        at = source.sector + piece.start
        self._observe(events.ReadFailed(source.device.path, at, piece.length, error))

    def _write_failed(self, piece: Piece, index: int, error: int) -> None:
        dest = self.dests[index]
        give_up = not self._skip or error in GONE
        if not give_up and error not in HOPELESS and piece.length > self.plan.block:
            self._split(piece._replace(targets=(index,)))
            return
        dest.failures.add(piece.start, piece.end, error)
        at = dest.region.sector + piece.start
        dropped = give_up and not dest.error
        if dropped:
            dest.drop(error, "write")
        self._observe(events.WriteFailed(dest.path, at, piece.length, error))
        if dropped:
            self._observe(events.Dropped(dest.path, "write", error))

    def _split(self, piece: Piece) -> None:
        """Try the halves of a piece by themselves, the lower one first."""
        lower, upper = piece.halves(self.plan.block)
        self._again += (upper, lower)

    def _flush_failed(self, dest: Destination, error: int) -> None:
        if not dest.error:
            dest.drop(error, "flush")
            self._observe(events.Dropped(dest.path, "flush", error))

    def _stop(self) -> None:
        """Start nothing more: no piece, and nothing of the jobs that still wait in the client."""
        self._stopping = True
        for attempt in list(self._active):
            if attempt.job is not None:
                attempt.job.cancel()

    def _abandon(self) -> None:
        """Wait no longer: what is in flight, or a flush, takes too long for a user who waits."""
        if not self.finished:
            self.abandoned = True
            self._finish()

    def _save(self) -> None:
        if self._saved is not None and not self.finished:
            try:
                self._saved(self)
            except Exception as error:  # the copy is worth more than its map
                self._reactor.report(error)

    def _finish(self) -> None:
        if self.finished:
            return
        self._durability.stop()
        self.seconds = self._reactor.time() - self._began
        self._tell_progress()
        self.finished = True

    def _announce(self) -> None:
        plan = self.plan
        source = str(plan.source.device.path) if plan.source else ""
        paths = tuple(dest.path for dest in self.dests)
        already = min(dest.sectors for dest in self.dests)
        self._observe(events.Started(source, paths, plan.count, already))

    def _tick(self) -> None:
        if not self.finished:
            self._tell_progress()
            self._reactor.call_later(PROGRESS_SECONDS, self._tick)

    def _tell_progress(self) -> None:
        seconds = self._reactor.time() - self._began
        written = tuple(dest.sectors for dest in self.dests)
        settled, total = self._settled(), self.plan.count
        self._observe(events.Progress("copy", settled, total, written, seconds, self._already))

    def _settled(self) -> int:
        """Return how many sectors are written, or known to be bad, where most are."""
        return self.bad.total() + max(
            (dest.sectors + dest.failures.total() for dest in self.dests if not dest.error),
            default=max(dest.sectors for dest in self.dests),
        )
