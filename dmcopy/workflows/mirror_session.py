"""Running the plan of a mirror workflow: change the tables, wait for the resync, tidy up."""

from __future__ import annotations

import contextlib
import errno
import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final, Protocol

from dmcopy.errors import DeadlineError, DeviceError, DmcopyError, PartialError
from dmcopy.mapper.base import Mapper, note_failure
from dmcopy.workflows import interrupted
from dmcopy.workflows.journal import Journal, NoJournal
from dmcopy.workflows.mirror_devices import identity
from dmcopy.workflows.mirror_resync import Waiter
from dmcopy.workflows.mirror_swap import actions
from dmcopy.workflows.record import Record, Step
from dmcopy.workflows.steps import Runner

NOUN: Final = "mirror"


@dataclass(frozen=True, slots=True)
class Plan:
    """A workflow that has been checked, and has changed nothing yet.

    Attributes:
        verb: what a person asked for, and `name`: of which device.
        steps: what is done at once.
        after: what is done when the device is in sync; needed only if `resync`.
        devices: the names of the mapped devices that it changes.
        undo_failed: take everything back when a leg fails before the device is in sync.
    """

    verb: str
    name: str
    steps: Sequence[Step]
    after: Sequence[Step] = ()
    devices: tuple[str, ...] = ()
    resync: bool = False
    undo_failed: bool = False


class Waits(Protocol):
    """What waits for a resync: a `Waiter`, or in a trial who tells how to."""

    def wait(self, name: str, timeout: float | None = None) -> object:
        """Return when the device is in sync."""


class Session:
    """Runs plans on `mapper`, and ends interrupted ones. With a `NoJournal` it is a trial."""

    def __init__(self, mapper: Mapper, journal: Journal, waiter: Waits | None = None) -> None:
        self.mapper = mapper
        self.journal = journal
        self.trial = isinstance(journal, NoJournal)
        self._waiter = waiter or Waiter(mapper)
        self._runner = Runner(
            mapper, journal, actions=actions(mapper, trial=self.trial), key=identity
        )

    def run(self, plan: Plan, *, wait: bool = True, timeout: float | None = None) -> None:
        """Run a plan to its end; with `wait` False only until the resync goes on by itself.

        After an error all is as before, as far as it can be; the error says when it is not. A
        resync that outlasts `timeout` seconds goes on (DeadlineError): `finish` or `undo` end it.
        """
        facts = {
            "after": [asdict(step) for step in plan.after],
            "resync": plan.resync,
            "undo_failed": plan.undo_failed,
        }
        record = Record(
            NOUN, plan.verb, plan.name, list(plan.steps), devices=plan.devices, facts=facts
        )
        self.journal.begin(record)
        self._go_on(record, wait, timeout)

    def interrupted(self, name: str) -> Record | None:
        """Return the record of the workflow on `name` that nobody works on, None if none is."""
        record = self.journal.find(NOUN, name)
        return None if record is None or record.running else record

    def finish(self, name: str, *, timeout: float | None = None) -> str:
        """End the interrupted workflow on `name`; return a sentence. Raises as `run` does."""
        record = self._adopt(name)
        if record.rebooted:
            return self._after_restart(record)
        if record.undoing:
            self._runner.undo(record)
            return f"{name}: '{record}' was being taken back, and now is"
        self._go_on(record, True, timeout)
        return f"{name}: '{record}' is done"

    def undo(self, name: str) -> str:
        """Take back the interrupted workflow on `name`; return a sentence."""
        record = self._adopt(name)
        if record.rebooted:
            return self._after_restart(record)
        self._runner.undo(record)
        return f"{name}: '{record}' is taken back"

    def forget(self, name: str) -> str:
        """Give an interrupted workflow up, and change no device; return what is left behind."""
        return interrupted.forget(self.mapper, self.journal, NOUN, name)

    def advice(self, record: Record) -> str:
        """Return what can be done about an interrupted workflow."""
        if record.rebooted:
            return f"the machine was restarted since; 'dmcopy mirror undo {record.name}' forgets it"
        if record.undoing or not self._runner.undoable(record):
            return f"'dmcopy mirror finish {record.name}' ends it"
        return record.advice

    def _adopt(self, name: str) -> Record:
        record = interrupted.find(self.journal, NOUN, name)
        self.journal.adopt(record)
        return record

    def _after_restart(self, record: Record) -> str:
        # Mapped devices end with the kernel; what is on the disks below is as the crash left it.
        self.journal.end(record)
        return (
            f"{record.name}: '{record}' ended with the restart of the machine, which left no "
            "mapped device: make it again"
        )

    def _go_on(self, record: Record, wait: bool, timeout: float | None) -> None:
        self._runner.run(record)
        if record.facts["resync"]:
            if not wait:
                return
            self._wait(record, timeout)
            self._runner.check(record)
        record.facts["resync"] = False
        after = [Step(**step) for step in record.facts["after"]]
        record.facts["after"] = []
        record.steps += [self._with_before(step) for step in after]
        self._runner.run(record)
        self.journal.end(record)

    def _wait(self, record: Record, timeout: float | None) -> None:
        try:
            self._waiter.wait(record.name, timeout)
        except PartialError as error:
            if record.facts["undo_failed"]:
                note_failure(error, functools.partial(self._take_back, record, error))
            else:
                self.journal.end(record)
            raise
        except DeviceError as error:
            if error.errno == errno.ENXIO and record.committed:
                return  # somebody has removed it: only what is under it is left to be tidied up
            if error.errno == errno.ENXIO:
                note_failure(error, functools.partial(self._take_back, record, error))
            raise
        except (DeadlineError, KeyboardInterrupt) as error:
            error.add_note(f"'{record}' waits for the resync, which goes on: {record.advice}")
            raise

    def _take_back(self, record: Record, error: BaseException) -> None:
        self._runner.undo(record)
        there = self.mapper.exists(record.name)
        now = f": {record.name} is as it was before" if there else ""
        error.add_note(f"'{record}' was taken back{now}")

    def _with_before(self, step: Step) -> Step:
        """Return a step with the table that its device has now, for a way back."""
        if not step.table or step.verb == "create":
            return step
        with contextlib.suppress(DmcopyError):  # not there in a trial run
            return replace(step, before=str(self.mapper.table(step.device)))
        return step
