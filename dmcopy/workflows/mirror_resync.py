"""Waiting until a mirror is in sync, and telling how far it is."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import shlex
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from dmcopy.errors import DeadlineError, DeviceError, DmcopyError, PartialError
from dmcopy.mapper.base import Mapper, note_failure
from dmcopy.observing import shielded
from dmcopy.status import MirrorStatus
from dmcopy.status.legs import LEG_HEALTH, LOG_HEALTH
from dmcopy.workflows.record import PlanRecord
from dmcopy.workflows.site import Site, pause
from dmcopy.workflows.step import Step
from dmcopy.workflows.steps import Runner

_SHORTEST: Final = 0.05
_LONGEST: Final = 1.0
_LOOP: Final = """\
until dmsetup status -- {name} | awk '
  $3 == "mirror" {{split($(5 + $4), sync, "/"); left += sync[2] - sync[1]}}
  END {{exit (left > 0)}}'; do
  sleep 1
done"""


class Resync(NamedTuple):
    """How far the resync of the device `name` is.

    `in_sync` of `regions`, and `sectors`, about. `rate` is in sectors a second since the wait
    began, `seconds` how long that is, `seconds_left` how long the rest takes at that rate; None
    while it is not known.
    """

    name: str
    in_sync: int
    regions: int
    sectors: int
    total: int
    seconds: float
    rate: float
    seconds_left: float | None


ResyncObserver = Callable[[Resync], object]


def ignore(progress: object) -> None:
    """Observe nothing."""


class Waiter:
    """Waits for the mirrors in a device's table. `clock` is time's."""

    def __init__(
        self,
        mapper: Mapper,
        observer: ResyncObserver = ignore,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mapper = mapper
        self._observer = shielded(observer)
        self._clock = clock

    def wait(self, name: str, timeout: float | None = None) -> Resync:
        """Return once every region of the device is in sync; None waits for ever.

        Raises PartialError when a leg or the log fails, since the kernel tries each region only
        once, and DeadlineError, which changes nothing: the resync continues.
        """
        began = self._clock()
        first: Resync | None = None
        seconds = _SHORTEST
        while True:
            now = self._look(name, began, first)
            first = first or now
            self._observer(now)
            if now.in_sync == now.regions:
                return now
            if timeout is not None and now.seconds >= timeout:
                raise DeadlineError(
                    f"{name}: {now.in_sync} of {now.regions} regions are in sync after "
                    f"{timeout:g} s; it continues, and 'dmcopy mirror wait {name}' waits again"
                )
            pause(self._mapper, name, seconds)
            seconds = min(seconds * 1.5, _LONGEST)

    def _look(self, name: str, began: float, first: Resync | None) -> Resync:
        in_sync = regions = sectors = total = 0
        for line in self._mapper.status(name, flush=False):
            total += line.length
            status = line.status
            if not isinstance(status, MirrorStatus):
                sectors += line.length
                continue
            if status.trouble:
                raise PartialError(self._sentence(name, status))
            in_sync += status.sync.used
            regions += status.sync.total
            sectors += line.length * status.sync.used // status.sync.total
        seconds = self._clock() - began
        done = sectors - first.sectors if first else 0
        rate = done / seconds if done > 0 and seconds > 0 else 0.0
        left = (total - sectors) / rate if rate else None
        return Resync(name, in_sync, regions, sectors, total, seconds, rate, left)

    def _sentence(self, name: str, status: MirrorStatus) -> str:
        """Say which leg has failed, and what can be done about it."""
        site = Site(self._mapper)
        found: list[str] = []
        advice = (
            f"'dmcopy mirror drop {name} --keep 0' continues without a log, and 'dmcopy mirror "
            f"make {name} --from {name}' with another one"
        )
        for at, letter in reversed(list(enumerate(status.health))):
            if letter != "A":
                label = site.label(status.legs[at])
                found.insert(0, f"leg {at}, {label}: {LEG_HEALTH.get(letter, 'failed')}")
                advice = f"'dmcopy mirror replace {name} {at} NEWDEV' puts another in its place"
        if status.log_health != "A":
            found.append(LOG_HEALTH.get(status.log_health, "the log failed"))
        return f"{name}: {'; '.join(found)}; {status.sync} regions are in sync; {advice}"


class Resyncing:
    """The wait of a workflow that changed the legs of a mirror; see `Waiter`."""

    def __init__(self, runner: Runner, observer: ResyncObserver) -> None:
        self._runner = runner
        self._mapper = runner.mapper
        self._waiter = Waiter(runner.mapper, observer)

    def begin(self, record: PlanRecord) -> None:
        self._runner.run(record)

    def wait(self, record: PlanRecord, timeout: float | None) -> None:
        """Return when the device is in sync; end the record, or undo it, when a leg has failed."""
        try:
            self._waiter.wait(record.name, timeout)
        except PartialError as error:
            if record.undo_failed:
                note_failure(error, functools.partial(self._take_back, record, error))
            else:
                self._runner.journal.end(record)
            raise
        except DeviceError as error:
            if error.errno == errno.ENXIO and record.committed:
                return  # it has been removed: only what is under it is left to be tidied up
            if error.errno == errno.ENXIO:
                note_failure(error, functools.partial(self._take_back, record, error))
            raise
        except (DeadlineError, KeyboardInterrupt) as error:
            error.add_note(f"'{record}' waits for the resync, which continues: {record.advice}")
            raise

    def loop(self, record: PlanRecord) -> str:
        """Return the lines of a shell script that wait for it: without it, it would break."""
        return _LOOP.format(name=shlex.quote(record.name))

    def after(self, record: PlanRecord) -> list[Step]:
        """Return the steps that were planned, with the tables that they replace, for a way back."""
        return [self._with_before(step) for step in record.after]

    def _with_before(self, step: Step) -> Step:
        if not step.table or step.verb == "create":
            return step
        with contextlib.suppress(DmcopyError):  # not there in a trial run
            return dataclasses.replace(step, before=str(self._mapper.table(step.device)))
        return step

    def _take_back(self, record: PlanRecord, error: BaseException) -> None:
        self._runner.undo(record)
        there = self._mapper.exists(record.name)
        now = f": {record.name} is as it was before" if there else ""
        error.add_note(f"'{record}' was taken back{now}")
