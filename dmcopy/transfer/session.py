"""One copy from the names that a user gives to its outcome: open, copy, flush, verify."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from dmcopy.errors import DeviceError, DmcopyError, UsageError
from dmcopy.io.reactor import Reactor
from dmcopy.kcopyd import Client, Throttle
from dmcopy.observing import shielded
from dmcopy.ranges import RangeSet
from dmcopy.transfer import events
from dmcopy.transfer.copy import OnError, Transfer
from dmcopy.transfer.durability import INTERVAL_SECONDS
from dmcopy.transfer.opening import OpenedRegions, is_same
from dmcopy.transfer.outcome import TransferOutcome
from dmcopy.transfer.plan import TransferPlan, block_of, find_holes
from dmcopy.transfer.settings import Settings, choose

if TYPE_CHECKING:
    from dmcopy.transfer.store import StateStore


class TransferOptions(NamedTuple):
    """How to copy. None: chosen for the devices. `throttle` is a percentage, `piece` in sectors.

    `limit`: bytes a second, 0: as many as there are.
    """

    backend: str | None = None
    depth: int | None = None
    piece: int | None = None
    pages: int | None = None
    throttle: int = 100
    limit: int = 0
    on_error: OnError = "stop"
    sparse: bool = False
    verify: bool = False
    map_path: str = ""
    map_interval: float = INTERVAL_SECONDS
    retry: bool = False
    trust_map: bool = False


class TransferSession:
    """Runs one copy over devices that are open already. `interrupt` may come from a signal."""

    def __init__(
        self,
        opened: OpenedRegions,
        options: TransferOptions,
        observer: events.TransferObserver = events.ignore,
    ) -> None:
        self.options = options
        self._opened = opened
        self._observe = shielded(observer)
        self._stop: Callable[[], object] | None = None
        self._interrupted = False
        self._map_error = ""
        source, dests = opened.source, tuple(opened.dests)
        self.settings: Settings = choose(
            source,
            dests,
            backend=options.backend,
            depth=options.depth,
            piece=options.piece,
            pages=options.pages,
            limit=options.limit,
        )
        holes, empty = RangeSet(), tuple[RangeSet, ...]()
        if options.sparse or source is None:
            block = block_of((source, *dests) if source else dests)
            holes = find_holes(source, block) if source else holes
            empty = tuple(find_holes(dest, block) for dest in dests)
        self.plan = TransferPlan(source, dests, self.settings.piece, options.sparse, holes, empty)
        self._reactor: Reactor | None = None
        self._store = self._make_store()

    def run(self) -> TransferOutcome:
        """Copy, and verify if that was asked for. Raises UsageError when the map does not fit."""
        with ExitStack() as stack:
            reactor = self._reactor = stack.enter_context(self.settings.reactor())
            with ExitStack() as pages:
                outcome = self._copy(pages.enter_context(self._client(reactor)))
                if outcome.transfer.abandoned:  # neither can be closed with requests in flight
                    pages.pop_all()
                    stack.pop_all()
                    return outcome
            if self.options.verify and not (outcome.interrupted or outcome.transfer.source_error):
                self._verify(reactor, outcome)
        return outcome

    def interrupt(self) -> None:
        """End it soon. From any thread, and from a signal handler."""
        self._interrupted = True
        if self._stop is not None:
            self._stop()

    def _copy(self, client: Client) -> TransferOutcome:
        transfer = Transfer(
            client,
            self.plan,
            on_error=self.options.on_error,
            observer=self._observe,
            saved=self._save if self._store else None,
            interval=self.options.map_interval,
            outstanding=self.settings.outstanding,
            limit=self.options.limit,
        )
        outcome = TransferOutcome(transfer, self.settings, created=self._opened.created)
        store = self._store
        if store is not None:
            self._open_map(store, outcome)
        self._drive(transfer.interrupt, transfer.run)
        outcome.map_error = self._map_error
        if store is not None and store.fresh and outcome.nothing_written:
            store.remove()  # a map of nothing would only be in the way
            outcome.map_path = ""
        return outcome

    def _make_store(self) -> StateStore | None:
        path = self.options.map_path
        if not path:
            return None
        from dmcopy.transfer.store import SUFFIX, StateStore  # not for a copy without a map

        devices = [region.device.path for region in self.plan.regions]
        devices += [missing for missing, _ in self._opened.missing]
        for name in (path, path + SUFFIX):
            if used := is_same(name, devices):
                raise UsageError(f"{name} cannot be the map: it is {used}, which is to be copied")
        if is_same(path, [path + SUFFIX]):
            raise UsageError(f"{path} cannot be the map: {path + SUFFIX} is the same file")
        return StateStore(path, trust=self.options.trust_map)

    def _open_map(self, store: StateStore, outcome: TransferOutcome) -> None:
        """Resume where a map ends; save it once before the first write, to see that it works."""
        transfer = outcome.transfer
        retry = self.options.retry or self.options.on_error == "stop"
        store.load(transfer, retry=retry, created=self._opened.created)
        outcome.map_path = store.path
        outcome.resumed = sum(dest.sectors for dest in transfer.dests)
        try:
            store.save(transfer)
        except BaseException:
            if store.fresh:
                store.remove()
            raise

    def _save(self, transfer: Transfer) -> None:
        assert self._store is not None
        try:
            self._store.save(transfer)
        except DmcopyError as error:  # the copy is worth more than its map
            first, self._map_error = not self._map_error, _reason(error)
            if first:
                self._observe(events.MapFailed(self._store.path, self._map_error))
        else:
            self._map_error = ""

    def _client(self, reactor: Reactor) -> Client:
        settings = self.settings
        return Client(
            settings.pages,
            reactor=reactor,
            throttle=Throttle(self.options.throttle),
            sub_job_sectors=settings.sub_job,
            depth=settings.depth,
        )

    def _verify(self, reactor: Reactor, outcome: TransferOutcome) -> None:
        from dmcopy.transfer.verify import Verifier

        verifier = Verifier(
            reactor,
            self.plan,
            outcome.transfer.dests,
            pages=self.settings.pages,
            depth=self.settings.depth,
            observer=self._observe,
            limit=self.options.limit,
        )
        outcome.verified = verifier.result
        self._drive(verifier.interrupt, verifier.run)

    def _drive(self, stop: Callable[[], object], run: Callable[[], object]) -> None:
        """Run a phase that `interrupt` ends by calling `stop` on the reactor."""
        assert self._reactor is not None
        self._stop = partial(self._reactor.call_soon_threadsafe, stop)
        if self._interrupted:  # before there was anything to stop
            self._stop()
        run()
        self._stop = None


def _reason(error: DmcopyError) -> str:
    return os.strerror(error.errno) if isinstance(error, DeviceError) else str(error)
