"""One copy from the names that a user gives to its outcome: open, copy, flush, verify."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dmcopy.io.reactor import Reactor
from dmcopy.kcopyd import Client, Throttle
from dmcopy.ranges import RangeSet
from dmcopy.transfer import events
from dmcopy.transfer.copy import OnError, Transfer
from dmcopy.transfer.opening import Opened
from dmcopy.transfer.outcome import Outcome
from dmcopy.transfer.plan import Plan, block_of, find_holes
from dmcopy.transfer.settings import Settings, choose
from dmcopy.transfer.verify import Verifier


@dataclass(frozen=True)
class Options:
    """How to copy. None: chosen for the devices. `throttle` is a percentage, `piece` in sectors."""

    backend: str | None = None
    depth: int | None = None
    piece: int | None = None
    pages: int | None = None
    throttle: int = 100
    on_error: OnError = "stop"
    sparse: bool = False
    verify: bool = False
    map_path: str = ""
    retry: bool = False


class Session:
    """Runs one copy over devices that are open already. `interrupt` may come from a signal."""

    def __init__(
        self,
        opened: Opened,
        options: Options,
        observer: events.Observer = events.ignore,
    ) -> None:
        self.options = options
        self._opened = opened
        self._observe = observer
        self._stop: Callable[[], object] | None = None
        self._interrupted = False
        source, dests = opened.source, tuple(opened.dests)
        self.settings: Settings = choose(
            source,
            dests,
            backend=options.backend,
            depth=options.depth,
            piece=options.piece,
            pages=options.pages,
        )
        holes = RangeSet()
        if options.sparse and source is not None:
            holes = find_holes(source, block_of((source, *dests)))
        self.plan = Plan(source, dests, self.settings.piece, options.sparse, holes)
        self._reactor: Reactor | None = None

    def run(self) -> Outcome:
        """Copy, and verify if that was asked for."""
        reactor = self._reactor = self.settings.reactor()
        client = self._client(reactor)
        transfer = Transfer(
            client,
            self.plan,
            on_error=self.options.on_error,
            observer=self._observe,
            outstanding=self.settings.outstanding,
        )
        outcome = Outcome(transfer, self.settings, created=self._opened.created)
        self._drive(transfer.interrupt, transfer.run)
        if transfer.abandoned:
            return outcome
        client.destroy()
        if self.options.verify and not transfer.interrupted and not transfer.source_error:
            self._verify(reactor, outcome)
        reactor.close()
        return outcome

    def interrupt(self) -> None:
        """End it soon. From any thread, and from a signal handler."""
        self._interrupted = True
        if self._stop is not None and self._reactor is not None:
            self._reactor.call_soon_threadsafe(self._stop)

    def _client(self, reactor: Reactor) -> Client:
        settings = self.settings
        return Client(
            settings.pages,
            reactor=reactor,
            throttle=Throttle(self.options.throttle),
            sub_job_sectors=settings.sub_job,
            depth=settings.depth,
        )

    def _verify(self, reactor: Reactor, outcome: Outcome) -> None:
        verifier = Verifier(
            reactor,
            self.plan,
            outcome.transfer.dests,
            pages=self.settings.pages,
            depth=self.settings.depth,
            observer=self._observe,
        )
        outcome.verified = verifier.result
        self._drive(verifier.interrupt, verifier.run)

    def _drive(self, stop: Callable[[], object], run: Callable[[], object]) -> None:
        """Run a phase that `interrupt` ends by calling `stop` on the reactor."""
        assert self._reactor is not None
        self._stop = stop
        if self._interrupted:  # before there was anything to stop
            self._reactor.call_soon(stop)
        run()
        self._stop = None
