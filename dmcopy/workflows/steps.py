"""Running the steps of a workflow, continuing after a crash, and taking them back."""

from __future__ import annotations

import contextlib
import errno
import signal
from collections.abc import Iterator, Mapping
from typing import Final

from dmcopy.errors import DeviceError, DmcopyError
from dmcopy.io.signals import Shield
from dmcopy.mapper.base import DmInfo, Mapper
from dmcopy.table import Table
from dmcopy.workflows.actions import Action
from dmcopy.workflows.journal import Journal
from dmcopy.workflows.machine import Machine
from dmcopy.workflows.record import PlanRecord
from dmcopy.workflows.site import Site
from dmcopy.workflows.step import Step

_HELD_BACK: Final = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class Runner:
    """Runs the steps of records on `mapper`, noting in `journal` how far it is.

    `actions` are the verbs that workflows have besides those of a mapper.
    """

    def __init__(
        self, mapper: Mapper, machine: Machine, journal: Journal, actions: Mapping[str, Action]
    ) -> None:
        self.mapper = mapper
        self.machine = machine
        self.journal = journal
        self._actions = actions

    def run(self, record: PlanRecord) -> None:
        """Do what is left of the steps. After an error they are undone, if they can be.

        A record of an earlier process continues where that one stopped, also in undoing: see
        `check`. Once it is too late to undo, a step on a device that is gone by then has nothing
        left to do. Whatever happens, no file is written between steps that are joined, and Ctrl-C
        waits for their end.
        """
        if record.undoing:
            self.undo(record)
            return
        again = record.begun > 0
        if again:
            self.check(record)
        try:
            while record.settled < len(record.steps):
                self._run_group(record, again)
        except (Exception, KeyboardInterrupt) as error:
            self._after(error, record)
            raise

    def _after(self, error: BaseException, record: PlanRecord) -> None:
        try:
            if self.undoable(record):
                self.undo(record)
                error.add_note(f"'{record}' was taken back")
                return
        except DmcopyError as failure:
            error.add_note(f"and then, while cleaning up: {failure}")
        error.add_note(f"'{record}' stopped halfway: {record.advice}; {record.last_resort}")

    def undo(self, record: PlanRecord) -> None:
        """Take back the steps that were begun, the last one first, and end the record.

        Raises DmcopyError when it is too late for that, and what `check` does.
        """
        if not record.undoing and not self.undoable(record):
            raise DmcopyError(
                f"{record.name}: '{record}' cannot be taken back any more; "
                f"'dmcopy {record.noun} finish {record.name}' ends it"
            )
        if record.begun:  # else no device is given anything back
            self.check(record)
        record.undoing = True
        try:
            self.take_back(record)
        except DmcopyError as error:
            halfway = f"'{record}' is taken back in part"
            error.add_note(f"{halfway}: {record.advice}; {record.last_resort}")
            raise
        self.journal.end(record)

    def take_back(self, record: PlanRecord) -> None:
        """Take back the steps that were begun, the last one first; the record stays."""
        while record.begun:
            start = record.begun - 1
            while start and record.steps[start].joined:
                start -= 1
            record.settled = min(record.settled, start)
            self.journal.save(record)
            with _held_back():
                for step in reversed(record.steps[start : record.begun]):
                    self._undo(step)
            record.begun = start

    def check(self, record: PlanRecord) -> None:
        """Raise DmcopyError if a device of the steps has been given another table meanwhile.

        Neither is it ours to be removed then, nor would it get back what it had.
        """
        site = self._site()
        there = [step.device for step in record.steps if step.device in site.infos]
        for name in dict.fromkeys(there):
            now = site.table(name)
            steps = [step for step in record.steps if step.device == name]
            known = [text for step in steps for text in (step.table, step.before) if text]
            if now.lines and known and not any(site.same(now, Table.read(text)) for text in known):
                raise DmcopyError(
                    f"{name} has another table than '{record}' found or gave it, {known[-1]}: "
                    f"give it that again, or {record.last_resort}"
                )

    def undoable(self, record: PlanRecord) -> bool:
        """Return whether the steps can be taken back: no final one has happened."""
        doubtful = record.steps[record.settled : record.begun]
        return not record.committed and not any(
            step.final and self._happened(step) for step in doubtful
        )

    def _run_group(self, record: PlanRecord, again: bool) -> None:
        start, end = record.settled, record.settled + 1
        while end < len(record.steps) and record.steps[end].joined:
            end += 1
        doubtful = record.begun > start
        record.begun = end
        self.journal.save(record)
        with _held_back():
            for step in record.steps[start:end]:
                self._do(step, again or doubtful, gone=again and record.committed)
        record.settled = end
        record.committed = record.committed or any(step.final for step in record.steps[start:end])

    def _do(self, step: Step, doubtful: bool, *, gone: bool) -> None:
        """Do a step. `doubtful`: it may have happened; `gone`: its device may be no more."""
        action = self._actions.get(step.verb)
        if action is not None:
            action.do(step)
            return
        info = self._info(step.device) if doubtful else None
        if gone and info is None and step.verb != "create":
            return
        match step.verb:
            case "create":
                self._create(step, info)
            case "load":
                if info is not None and info.inactive:
                    self.mapper.clear(step.device)
                self.mapper.load(step.device, self._table(step))
            case "suspend" if info is None or not info.suspended:
                self.mapper.suspend(step.device)
            case "resume" if info is None or info.suspended or info.inactive:
                self.mapper.resume(step.device)
            case "remove" if not doubtful or info is not None:
                self.mapper.remove(step.device)
            case _:
                pass  # it was done before the crash

    def _create(self, step: Step, info: DmInfo | None) -> None:
        table = self._table(step) if step.table else None
        if info is None:
            self.mapper.create(step.device, table, keep=True)
        elif table is not None and not info.live:  # the crash came between making and loading
            if info.inactive:
                self.mapper.clear(step.device)
            self.mapper.load(step.device, table)
            self.mapper.resume(step.device)

    def _undo(self, step: Step) -> None:
        action = self._actions.get(step.verb)
        if action is not None:
            action.undo(step)
            return
        info = self._info(step.device)
        if info is None:
            return  # its making comes earlier: it never was made, or is gone by now
        match step.verb:
            case "create":
                self.mapper.remove(step.device)
            case "load" if info.inactive:
                self.mapper.clear(step.device)
            case "suspend" if info.suspended or info.inactive:
                self.mapper.resume(step.device)
            case "resume":
                self._undo_resume(step, info)
            case _:
                pass

    def _undo_resume(self, step: Step, info: DmInfo) -> None:
        """Bring the table back that was there before, under suspend; `suspend`'s undo resumes."""
        swapped = info.live and str(self.mapper.table(step.device)) != step.before
        if info.inactive:
            self.mapper.clear(step.device)
        if swapped and step.before:
            self.mapper.load(step.device, Table.read(step.before))
        if swapped and not info.suspended:
            self.mapper.suspend(step.device)

    def _happened(self, step: Step) -> bool:
        """Return whether a final step that was begun has happened."""
        info = self._info(step.device)
        if step.verb == "remove":
            return info is None
        if info is None or info.suspended:
            return False
        return info.live and str(self.mapper.table(step.device)) != step.before

    def _info(self, name: str) -> DmInfo | None:
        try:
            return self.mapper.info(name)
        except DeviceError as error:
            if error.errno == errno.ENXIO:
                return None
            raise

    def _table(self, step: Step) -> Table:
        return self._site().for_engine(Table.read(step.table))

    def _site(self) -> Site:
        return Site(self.mapper, self.machine)


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Let a Ctrl-C wait. The shield keeps it from this thread, whichever thread the kernel gave it
    to; the mask from dmsetup, which inherits that.
    """
    with Shield(lambda: None):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
