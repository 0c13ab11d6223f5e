"""A merge from its beginning to its end, over interruptions and reboots."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from dmcopy.errors import BusyError, DeadlineError, DmcopyError
from dmcopy.mapper.base import Mapper, note_failure
from dmcopy.observing import shielded
from dmcopy.status import SnapshotMergeStatus
from dmcopy.status.snapshot import MERGE_FAILED
from dmcopy.workflows import snapshot_layout as layouts
from dmcopy.workflows.nodes import Nodes
from dmcopy.workflows.record import Record, Step
from dmcopy.workflows.snapshot_layout import Layout
from dmcopy.workflows.snapshot_survey import Survey
from dmcopy.workflows.steps import Runner

POLL_SECONDS: Final = 0.5
GRACE_SECONDS: Final = 3.0
"""Who only looks at a device for a moment, as udev does after every close, is done by then."""
_PAUSE: Final = 0.05
_FILES: Final = ("attach", "detach")


@dataclass(frozen=True, slots=True)
class Progress:
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
        """Sectors per second."""
        return (self.first - self.left) / self.seconds if self.seconds else 0.0

    @property
    def remaining(self) -> float | None:
        """Seconds until the end at that rate, None while nothing was merged."""
        return self.left / self.rate if self.rate else None


class Merge:
    """A merge with a record: phase begin (hand the exceptions over), run (wait), end (clean up)."""

    def __init__(self, mapper: Mapper, nodes: Nodes, runner: Runner, record: Record) -> None:
        self._mapper = mapper
        self._nodes = nodes
        self._runner = runner
        self._record = record
        self._layout = Layout.from_dict(record.facts["layout"])

    def run(self, progress: Callable[[Progress], None] | None) -> Layout:
        """Do what is left of it."""
        record, journal = self._record, self._runner.journal
        self._plan_again()
        journal.adopt(record)
        if record.facts["phase"] == "begin":
            self._begin()
            self._enter("run")
        if record.facts["phase"] == "run":
            try:
                self._let_go_on()
                self._wait(shielded(progress or (lambda _: None)))
                self._enter("end", self._end_steps())
            except DmcopyError as error:
                error.add_note(f"once the cause is gone, {record.advice}; {record.last_resort}")
                raise
        self._runner.run(record)
        journal.end(record)
        return self._layout

    def plan(self) -> list[Record]:
        """Return what is to be done before the wait and after it, without doing anything."""
        record = self._record
        self._plan_again()
        if record.facts["phase"] == "end":
            return [record]
        end = dataclasses.replace(record, steps=self._end_steps(), settled=0, begun=0)
        return [record, end]

    def _enter(self, phase: str, steps: list[Step] | None = None) -> None:
        self._record.facts["phase"] = phase
        self._record.next(steps or [])
        self._runner.journal.save(self._record)

    def _begin(self) -> None:
        """Hand the exceptions over. Where that is done again, a failure changes no device."""
        record, again = self._record, self._record.committed
        try:
            self._runner.run(record)
        except DmcopyError as error:
            if again:
                note_failure(error, self._take_back)
            raise

    def _take_back(self) -> None:
        self._runner.take_back(self._record)
        self._runner.journal.save(self._record)

    def _plan_again(self) -> None:
        """Plan devices anew that a reboot has removed, or somebody.

        What was merged stays merged: the store on the COW knows what is left. Raises DmcopyError
        naming the remedy when the devices, or the store, are somebody else's by now.
        """
        layout, record = self._layout, self._record
        if record.facts["phase"] == "end":
            if record.rebooted and layout.cow:  # nothing else was left but devices
                attach, detach = ([Step(verb, file) for file in layout.files] for verb in _FILES)
                clean = Step("clean", layout.store_device, table=str(layout.chunk_size))
                record.next([*attach, clean, *detach])
            return
        survey = Survey(self._mapper, self._nodes)
        tables = {layout.real: layout.plain, layout.cow: layout.parts}
        now = survey.table(layout.origin)
        # One that was being made when its maker was killed is made again.
        there = [name for name in tables if str(survey.table(name)) not in ("", layout.placeholder)]
        wrong = [name for name in there if not survey.same_as(survey.table(name), tables[name])]
        planned = [layout.plain, layout.origin_table, layout.merge_table]
        if now.lines and not any(survey.same_as(now, text) for text in planned if text):
            wrong.append(layout.origin)
        if wrong:
            was = tables.get(wrong[0], layout.plain or layout.origin_table)
            raise DmcopyError(
                f"{wrong[0]} has another table than before, so the merge of {layout.name} cannot "
                f"go on; it was: {was}; give it that again, or {record.last_resort}"
            )
        if not record.rebooted and (record.begun or self._is_whole(survey)):
            self._runner.check(record)
            return
        record.committed = True  # as much as was merged before cannot be taken back
        if layout.cow not in there and not self._nodes.has_store(layout.store_device):
            raise DmcopyError(
                f"{layout.store_device} has no store on it any more, so the merge of {layout.name} "
                f"cannot go on; {record.last_resort}"
            )
        if now.lines:
            hint = "what is written would be overwritten"
            unused(self._mapper, self._nodes, layout.origin, hint)
        record.facts["phase"] = "begin"
        merging = now.lines and survey.same_as(now, layout.merge_table)
        record.next([] if merging else list(layouts.merge_again(layout, str(now), there)))

    def _is_whole(self, survey: Survey) -> bool:
        """Return whether all is there that the merge needs to go on."""
        layout, merging = self._layout, self._record.facts["phase"] == "run"
        needed = filter(None, (layout.origin, layout.real, layout.cow))
        if not all(name in survey.infos for name in needed):
            return False
        if not merging:
            return not self._record.committed
        return survey.same_as(survey.table(layout.origin), layout.merge_table)

    def _let_go_on(self) -> None:
        """Make the device of a merge that stopped at an error anew: only that clears the error."""
        origin = self._layout.origin
        if self._status().state == MERGE_FAILED:
            unused(self._mapper, self._nodes, origin, "its merge stopped and needs the device")
            self._record.next(list(layouts.merge_anew(self._layout)))
            self._runner.run(self._record)
            self._enter("run")

    def _wait(self, progress: Callable[[Progress], None]) -> None:
        """Poll: neither the end of a merge nor its failure is an event (6.1, 6.12)."""
        started, total = time.monotonic(), int(self._record.facts["total"])
        first: int | None = None
        while True:
            status = self._status()
            if status.used is None or status.metadata is None:
                raise DmcopyError(
                    f"{self._layout.name}: the merge into {self._layout.origin} stopped: "
                    f"{status.trouble or status}"
                )
            left = status.used.used - status.metadata
            first = left if first is None else first
            seconds = time.monotonic() - started
            progress(Progress(self._layout.name, left, total, first, seconds))
            if not left:
                return
            pause(self._mapper, self._layout.origin, POLL_SECONDS)

    def _status(self) -> SnapshotMergeStatus:
        for line in self._mapper.status(self._layout.origin):
            if isinstance(line.status, SnapshotMergeStatus):
                return line.status
        raise DmcopyError(f"{self._layout.origin} has another table than that of a merge by now")

    def _end_steps(self) -> list[Step]:
        survey = Survey(self._mapper, self._nodes)
        base = survey.key(self._layout.base)
        others = [
            one
            for one in survey.snapshots()
            if one.base == base and not one.merging and one.name != self._layout.name
        ]
        return list(
            layouts.merge_end(
                self._layout,
                str(survey.table(self._layout.origin)),
                last=not others,
                wipe=self._layout.chunk_size,
            )
        )


def pause(mapper: Mapper, name: str, seconds: float) -> None:
    """Let time pass, for `seconds` or until the device has an event."""
    try:
        mapper.wait(name, mapper.info(name).events, timeout=seconds)
    except DeadlineError:
        pass


def unused(mapper: Mapper, nodes: Nodes, name: str, hint: str) -> None:
    """Raise BusyError when somebody has a device open for longer than a moment."""
    deadline = time.monotonic() + GRACE_SECONDS
    while mapper.info(name).open_count:
        if time.monotonic() > deadline:
            raise BusyError(name, nodes.holders(mapper.path(name)), hint)
        time.sleep(_PAUSE)
