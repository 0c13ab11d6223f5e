"""The one step that mirrors are changed by: another table under a device that is in use."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Final

from dmcopy.errors import PartialError
from dmcopy.mapper.base import Mapper, note_failure
from dmcopy.status import MirrorStatus
from dmcopy.table import Mirror as MirrorTarget
from dmcopy.table import Table
from dmcopy.table.mirror import CoreLog, DiskLog
from dmcopy.workflows.actions import Action
from dmcopy.workflows.machine import Machine
from dmcopy.workflows.mirror import ALIVE
from dmcopy.workflows.site import Site
from dmcopy.workflows.step import Step

SWAP: Final = "swap"
"""Any table; held writes are done by the new one."""
SETTLE: Final = "settle"
"""Only while every mirror line is in sync; there is no way back, and no need for one."""
FREEZE: Final = "freeze"
"""Only while in sync, with the file system on the device frozen: what a leg has is consistent."""
REPLACE: Final = "replace"
"""As swap; undone, the legs from before are copied to again: they have missed writes."""


class TableSwap:
    """Loads a table, suspends, resumes; done already, it does nothing. See the verbs above.

    A table that was planned when all was well with a leg is not loaded over a mirror in which that
    leg has failed since: it would be copied from, or trusted to be in sync. It is not known before
    the device is suspended, so that is when it is looked at (`Step.health`).

    Without `flush` a mirror gives back the writes that it holds for a failed leg, and they go to
    the new table; with it they would fail (dm-raid1.c, hold_bio; measured on 6.1 and 6.12). Nor may
    a file system be frozen then: that waits for these very writes.
    """

    def __init__(self, mapper: Mapper, machine: Machine, verb: str, *, trial: bool) -> None:
        self._mapper = mapper
        self._machine = machine
        self._verb = verb
        self._frozen = verb == FREEZE
        self._checked = verb in (SETTLE, FREEZE) and not trial
        self._trial = trial

    def do(self, step: Step) -> None:
        """Make the step's table the active one. What is gone has no need to be settled."""
        site = Site(self._mapper, self._machine)
        if self._verb == SETTLE and not self._trial and step.device not in site.infos:
            return
        checks = [functools.partial(_check_in_sync, self._mapper)] if self._checked else []
        if step.health and not self._trial:
            checks.append(functools.partial(_check_health, self._mapper, step.health))
        self._activate(site, step.device, Table.read(step.table), checks)

    def undo(self, step: Step) -> None:
        """Make the one before it the active one again."""
        site = Site(self._mapper, self._machine)
        if step.device not in site.infos:
            return
        before = Table.read(step.before)
        if (
            self._verb == SETTLE
            or not before.lines
            or str(self._mapper.table(step.device)) == step.before
        ):
            self._mapper.thaw(step.device)
            return
        if self._verb == REPLACE:
            before = _copied_to_again(before, Table.read(step.table))
        self._activate(site, step.device, before, ())

    def _activate(
        self, site: Site, name: str, table: Table, checks: Sequence[Callable[[str], None]]
    ) -> None:
        info = site.infos.get(name)  # in a trial run it is only printed
        if info is not None and info.live and site.same(self._mapper.table(name), table):
            self._mapper.thaw(name)
            return
        self._mapper.load(name, site.for_engine(table))
        try:
            if info is None or not info.suspended:
                self._mapper.suspend(name, flush=self._frozen, lockfs=self._frozen)
            for check in checks:
                check(name)
            self._mapper.resume(name, flush=self._frozen, lockfs=self._frozen)
        except BaseException as error:
            note_failure(error, lambda: self._mapper.thaw(name))
            raise


def swaps(mapper: Mapper, machine: Machine, *, trial: bool = False) -> dict[str, Action]:
    """Return the actions by verb; in a `trial`, nothing is there to be checked."""
    verbs = (SWAP, SETTLE, FREEZE, REPLACE)
    return {verb: TableSwap(mapper, machine, verb, trial=trial) for verb in verbs}


def _mirrors(mapper: Mapper, name: str) -> list[MirrorStatus]:
    found = [line.status for line in mapper.status(name, flush=False)]
    return [status for status in found if isinstance(status, MirrorStatus)]


def _check_in_sync(mapper: Mapper, name: str) -> None:
    for status in _mirrors(mapper, name):
        if not status.in_sync or status.trouble:
            raise PartialError(
                f"{name}: {status.trouble or f'only {status.sync} regions are in sync'}"
            )


def _check_health(mapper: Mapper, planned: str, name: str) -> None:
    for status in _mirrors(mapper, name):
        pairs = zip(planned, status.health, strict=True)
        if any(before == ALIVE != now for before, now in pairs):
            raise PartialError(
                f"{name}: {status.trouble}, since this was asked for; nothing was changed: "
                f"ask 'dmcopy mirror status {name}', and then again"
            )


def _copied_to_again(before: Table, after: Table) -> Table:
    """Return a mirror's table from before a leg was replaced, to be loaded after that.

    Its first leg becomes the one that was first in the table `after`: that one has had every write.
    """
    old, new = before.lines[0].target, after.lines[0].target
    assert isinstance(old, MirrorTarget)
    assert isinstance(old.log, CoreLog | DiskLog)
    legs = old.legs
    if isinstance(new, MirrorTarget):
        first = [leg for leg in legs if leg == new.legs[0]]
        legs = (*first, *(leg for leg in legs if leg not in first))
    log = dataclasses.replace(old.log, sync="sync")
    target = dataclasses.replace(old, legs=legs, log=log)
    return Table.of(before.length, target)
