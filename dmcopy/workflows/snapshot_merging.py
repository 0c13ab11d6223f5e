"""A merge from its beginning to its end, over interruptions and reboots."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from dmcopy.errors import DeadlineError, DmcopyError
from dmcopy.mapper.base import note_failure
from dmcopy.observing import shielded
from dmcopy.status import SnapshotMergeStatus
from dmcopy.status.snapshot import MERGE_FAILED
from dmcopy.table import Table
from dmcopy.units import format_sectors
from dmcopy.workflows import snapshot_layout as layouts
from dmcopy.workflows.record import PlanRecord
from dmcopy.workflows.site import Site, pause
from dmcopy.workflows.snapshot_find import snapshots
from dmcopy.workflows.snapshot_layout import SnapshotLayout
from dmcopy.workflows.step import Step
from dmcopy.workflows.steps import Runner

POLL_SECONDS: Final = 0.5
_FILES: Final = ("attach", "detach")
# A merge is done when all that is allocated is metadata: used/total metadata of the status.
_LOOP: Final = """\
until dmsetup status -- {name} | awk '{{split($4, used, "/"); exit used[1] != $5}}'; do
  sleep 1
done"""


@dataclass(frozen=True, slots=True)
class MergeProgress:
    """How far a merge is: `left` sectors of data of `total` are still in the store.

    `seconds` since this process began to watch, when `first` sectors were left.
    """

    name: str
    left: int
    total: int
    first: int
    seconds: float

    @property
    def percent(self) -> float:
        """How much of the data is merged."""
        return 100.0 if not self.total else 100 * (self.total - self.left) / self.total

    @property
    def rate(self) -> float:
        return (self.first - self.left) / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the end at that rate, None while nothing was merged."""
        return self.left / self.rate if self.rate else None


class Merging:
    """The wait of a merge: hand the exceptions over, look how many are left, plan the end."""

    def __init__(self, runner: Runner, observer: Callable[[MergeProgress], object]) -> None:
        self._runner = runner
        self._mapper = runner.mapper
        self._machine = runner.machine
        self._observer = shielded(observer)

    def ready(self, record: PlanRecord) -> None:
        """Plan devices anew that a reboot or another program has removed.

        What was merged stays merged: the store on the COW knows what is left. Raises DmcopyError
        naming the remedy when the devices, or the store, have other users by now.
        """
        layout, site = _layout(record), self._site()
        if not record.wait:
            if record.rebooted and layout.cow:  # nothing else was left but devices
                attach, detach = ([Step(verb, file) for file in layout.files] for verb in _FILES)
                clean = Step("clean", layout.store_device, size=layout.chunk_size)
                record.next([*attach, clean, *detach])
            return
        tables = {layout.real: layout.plain, layout.cow: layout.parts}
        now = site.table(layout.origin)
        # One that was being made when its maker was killed is made again.
        there = [name for name in tables if str(site.table(name)) not in ("", layout.placeholder)]
        wrong = [
            name for name in there if not site.same(site.table(name), Table.read(tables[name]))
        ]
        planned = [layout.plain, layout.origin_table, layout.merge_table]
        if now.lines and not any(site.same(now, Table.read(text)) for text in planned if text):
            wrong.append(layout.origin)
        if wrong:
            was = tables.get(wrong[0], layout.plain or layout.origin_table)
            raise DmcopyError(
                f"{wrong[0]} has another table than before, so the merge of {layout.name} cannot "
                f"continue; it was: {was}; give it that again, or {record.last_resort}"
            )
        if not record.rebooted and (record.begun or _is_whole(site, record)):
            self._runner.check(record)
            return
        record.committed = True  # as much as was merged before cannot be taken back
        if layout.cow not in there and not self._machine.has_store(layout.store_device):
            raise DmcopyError(
                f"{layout.store_device} has no store on it any more, so the merge of {layout.name} "
                f"cannot continue; {record.last_resort}"
            )
        if now.lines:
            site.check_closed(layout.origin, "what is written would be overwritten")
        merging = now.lines and site.same(now, Table.read(layout.merge_table))
        record.next([] if merging else list(layouts.merge_again(layout, str(now), there)))

    def begin(self, record: PlanRecord) -> None:
        """Hand the exceptions over. Where that is done again, a failure changes no device."""
        again = record.committed
        try:
            self._runner.run(record)
        except DmcopyError as error:
            if again:
                note_failure(error, lambda: self._take_back(record))
            raise
        record.next([])
        self._runner.journal.save(record)

    def wait(self, record: PlanRecord, timeout: float | None) -> None:
        """Return when all is merged. Raises DmcopyError when it stops, DeadlineError."""
        try:
            self._let_go_on(record)
            self._until_merged(record, timeout)
        except DeadlineError as error:
            error.add_note(f"'{record}' waits for the merge, which continues: {record.advice}")
            raise
        except DmcopyError as error:
            error.add_note(f"once the cause is gone, {record.advice}; {record.last_resort}")
            raise

    def loop(self, record: PlanRecord) -> str:
        """Return the lines of a shell script that wait for it."""
        return _LOOP.format(name=shlex.quote(_layout(record).origin))

    def after(self, record: PlanRecord) -> list[Step]:
        """Return the steps that end it, by the snapshots that there are by now."""
        layout, site = _layout(record), self._site()
        base = site.key(layout.base)
        last = not [
            one
            for one in snapshots(site)
            if one.base == base and not one.merging and one.name != layout.name
        ]
        now = str(site.table(layout.origin))
        return list(layouts.merge_end(layout, now, last=last, wipe=layout.chunk_size))

    def _site(self) -> Site:
        return Site(self._mapper, self._machine)

    def _take_back(self, record: PlanRecord) -> None:
        self._runner.take_back(record)
        self._runner.journal.save(record)

    def _let_go_on(self, record: PlanRecord) -> None:
        """Make the device of a merge that stopped at an error anew: only that clears the error."""
        layout = _layout(record)
        if self._status(layout).state == MERGE_FAILED:
            site = self._site()
            site.check_closed(layout.origin, "its merge stopped and needs the device")
            record.next(list(layouts.merge_anew(layout)))
            self._runner.run(record)
            record.next([])
            self._runner.journal.save(record)

    def _until_merged(self, record: PlanRecord, timeout: float | None) -> None:
        """Poll: neither the end of a merge nor its failure is an event (6.1, 6.12)."""
        started, layout = time.monotonic(), _layout(record)
        first: int | None = None
        while True:
            status = self._status(layout)
            if status.used is None or status.metadata is None:
                raise DmcopyError(
                    f"{layout.name}: the merge into {layout.origin} stopped: "
                    f"{status.trouble or status}"
                )
            left = status.used.used - status.metadata
            first = left if first is None else first
            seconds = time.monotonic() - started
            self._observer(MergeProgress(layout.name, left, record.total, first, seconds))
            if not left:
                return
            if timeout is not None and seconds >= timeout:
                raise DeadlineError(
                    f"{layout.name}: {format_sectors(left)} are still to be merged after "
                    f"{timeout:g} s; it continues, and 'dmcopy snapshot merge {layout.name}' waits "
                    "again"
                )
            remaining = POLL_SECONDS if timeout is None else min(POLL_SECONDS, timeout - seconds)
            pause(self._mapper, layout.origin, remaining)

    def _status(self, layout: SnapshotLayout) -> SnapshotMergeStatus:
        for line in self._mapper.status(layout.origin):
            if isinstance(line.status, SnapshotMergeStatus):
                return line.status
        raise DmcopyError(f"{layout.origin} has another table than that of a merge by now")


def _layout(record: PlanRecord) -> SnapshotLayout:
    assert record.layout is not None  # `record.parse` has seen to that
    return record.layout


def _is_whole(site: Site, record: PlanRecord) -> bool:
    """Return whether all is there that the merge needs to continue."""
    layout = _layout(record)
    if not all(name in site.infos for name in (layout.origin, layout.real, layout.cow) if name):
        return False
    if not record.committed:  # it is still to be begun
        return True
    return site.same(site.table(layout.origin), Table.read(layout.merge_table))
