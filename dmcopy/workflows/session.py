"""Carrying out what was planned: run, finish, undo, forget, for every noun in one way.

    session = Session(KernelMapper())
    session.run(plan_take(session.mapper, "before-upgrade", "data", "/dev/vdc"))

A plan has been checked, and is data: steps; what is waited for then, if anything; steps after that.
A process that is killed at any moment leaves a record with which `finish` ends what it began, or
`undo` takes it back; what neither can end, `forget` gives up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from dmcopy.errors import DmcopyError
from dmcopy.mapper.base import Mapper
from dmcopy.workflows import interrupted
from dmcopy.workflows.actions import actions
from dmcopy.workflows.journal import Journal, NoJournal
from dmcopy.workflows.machine import machine_of
from dmcopy.workflows.mirror_resync import Resyncing, ignore
from dmcopy.workflows.mirror_swap import swaps
from dmcopy.workflows.record import Plan, PlanRecord
from dmcopy.workflows.site import Site
from dmcopy.workflows.snapshot_merging import Merging
from dmcopy.workflows.snapshot_take import check_store
from dmcopy.workflows.step import Step
from dmcopy.workflows.steps import Runner


class Wait(Protocol):
    """What a workflow waits for between its steps and those that end it."""

    def begin(self, record: PlanRecord) -> None:
        """Do the steps before."""

    def wait(self, record: PlanRecord, timeout: float | None) -> None:
        """Wait, for `timeout` seconds at most."""

    def loop(self, record: PlanRecord) -> str:
        """Return the lines of a shell script that wait for it."""

    def after(self, record: PlanRecord) -> list[Step]:
        """Return the steps that end it."""


class Ended(NamedTuple):
    """How an interrupted workflow has ended: `how` is done, taken back, or by a restart."""

    record: PlanRecord
    how: str


class Session:
    """Runs plans on `mapper`, and ends interrupted ones. With a `NoJournal` it is a trial.

    `observer` is called with how far a wait is: a `Resync` of mirrors, a `Progress` of a merge.
    """

    def __init__(
        self,
        mapper: Mapper,
        journal: Journal | None = None,
        observer: Callable[[Any], object] = ignore,
    ) -> None:
        self.mapper = mapper
        self.journal = journal or Journal()
        self.machine = machine_of(mapper)
        self.trial = isinstance(self.journal, NoJournal)
        verbs = actions(mapper, self.machine) | swaps(mapper, self.machine, trial=self.trial)
        self._runner = Runner(mapper, self.machine, self.journal, verbs)
        self._merging = Merging(self._runner, observer)
        self._resyncing = Resyncing(self._runner, observer)

    def run(self, plan: Plan, *, wait: bool = True, timeout: float | None = None) -> None:
        """Run a plan to its end; with `wait` False only until the rest continues by itself.

        After an error all is as before, as far as it can be; the error says when it is not. What
        outlasts `timeout` seconds continues (DeadlineError): `finish` ends it, or `undo`.
        """
        record = PlanRecord.of(plan)
        self.journal.begin(record)
        try:
            self._runner.check(record)  # a plan may be older than the table that it is for
        except DmcopyError:
            self.journal.end(record)
            raise
        self._go_on(record, wait, timeout)

    def interrupted(self, noun: str, name: str) -> PlanRecord | None:
        """Return the record of the workflow on `name` that no process works on, None if none is."""
        record = self.journal.find(noun, name)
        return None if record is None or record.running else record

    def check_free(self, *names: str) -> None:
        """Raise DmcopyError if a workflow that has to do with one of these was interrupted."""
        for record in self.journal.records():
            if not record.running and {record.name, *record.devices} & {*names}:
                raise DmcopyError(f"{names[0]}: '{record}' was interrupted: {record.advice}")

    def finish(self, noun: str, name: str, *, timeout: float | None = None) -> Ended:
        """End an interrupted workflow. Raises as `run` does, UsageError where there is none."""
        record = interrupted.find(self.journal, noun, name)
        if record.ended_by_restart:
            return self._after_restart(record)
        if record.undoing:
            return self._undo(record)
        self._ready(record)
        self.journal.adopt(record)
        self._go_on(record, True, timeout)
        return Ended(record, "done")

    def undo(self, noun: str, name: str) -> Ended:
        """Take back an interrupted workflow."""
        record = interrupted.find(self.journal, noun, name)
        if record.ended_by_restart:
            return self._after_restart(record)
        if record.rebooted:
            raise DmcopyError(
                f"{name}: a merge that a reboot interrupted cannot be taken back; "
                f"'dmcopy snapshot merge {name}' continues it"
            )
        return self._undo(record)

    def forget(self, noun: str, name: str) -> str:
        """Give an interrupted workflow up, and change no device; return what is left behind."""
        return interrupted.forget(self.mapper, self.journal, noun, name, self.machine.attached)

    def advice(self, record: PlanRecord) -> str:
        """Return what can be done about an interrupted workflow."""
        if record.rebooted or record.undoing or self._runner.undoable(record):
            return record.advice
        return f"'dmcopy {record.noun} finish {record.name}' ends it"

    def _undo(self, record: PlanRecord) -> Ended:
        self.journal.adopt(record)
        self._runner.undo(record)
        return Ended(record, "taken back")

    def _after_restart(self, record: PlanRecord) -> Ended:
        # Mapped devices end with the kernel; what is on the disks below is as the crash left it.
        self.journal.end(record)
        return Ended(record, "by a restart")

    def _ready(self, record: PlanRecord) -> None:
        if record.verb == "merge":
            self._merging.ready(record)
            return
        check_store(Site(self.mapper, self.machine), record)
        self._runner.check(record)  # also of one that was killed before its first step

    def _go_on(self, record: PlanRecord, wait: bool, timeout: float | None) -> None:
        waits: Wait = self._merging if record.wait == "merge" else self._resyncing
        if record.wait:
            waits.begin(record)
            if not wait:
                return
            if self.trial:
                print(waits.loop(record))
            else:
                waits.wait(record, timeout)
            self._runner.check(record)
        else:
            self._runner.run(record)
        record.steps += waits.after(record)
        record.wait, record.after = "", []
        self._runner.run(record)
        self.journal.end(record)
