"""Waiting until a mirror is in sync, and telling how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from dmcopy.errors import DeadlineError, PartialError
from dmcopy.mapper.base import Mapper
from dmcopy.observing import shielded
from dmcopy.status import MirrorStatus
from dmcopy.status.legs import LEG_HEALTH, LOG_HEALTH
from dmcopy.workflows.mirror_devices import Devices

_SHORTEST: Final = 0.05
_LONGEST: Final = 1.0


class Resync(NamedTuple):
    """How far the resync of the device `name` is.

    `in_sync` of `regions`, and about so many sectors. `rate` is in sectors a second since the wait
    began, `seconds` how long that is, `left` how long the rest takes at that rate; None while it is
    not known.
    """

    name: str
    in_sync: int
    regions: int
    sectors: int
    total: int
    seconds: float
    rate: float
    left: float | None


Observer = Callable[[Resync], None]


def ignore(progress: Resync) -> None:
    """Observe nothing."""


class Waiter:
    """Waits for the mirrors in a device's table. `clock` and `sleep` are time's."""

    def __init__(
        self,
        mapper: Mapper,
        observer: Observer = ignore,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._mapper = mapper
        self._observer = shielded(observer)
        self._clock = clock
        self._sleep = sleep

    def wait(self, name: str, timeout: float | None = None) -> Resync:
        """Return once every region of the device is in sync; None waits for ever.

        Raises PartialError when a leg or the log fails, since the kernel tries each region only
        once, and DeadlineError, which changes nothing: the resync goes on.
        """
        began = self._clock()
        first: Resync | None = None
        pause = _SHORTEST
        while True:
            now = self._look(name, began, first)
            first = first or now
            self._observer(now)
            if now.in_sync == now.regions:
                return now
            if timeout is not None and now.seconds >= timeout:
                raise DeadlineError(
                    f"{name}: {now.in_sync} of {now.regions} regions are in sync after "
                    f"{timeout:g} s; it goes on, and 'dmcopy mirror wait {name}' waits again"
                )
            self._sleep(pause)
            pause = min(pause * 1.5, _LONGEST)

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
        devices = Devices(self._mapper)
        found: list[str] = []
        advice = (
            f"'dmcopy mirror drop {name} --keep 0' goes on without a log, and 'dmcopy mirror make "
            f"{name} --from {name}' with another one"
        )
        for at, letter in reversed(list(enumerate(status.health))):
            if letter != "A":
                label = devices.label(status.legs[at])
                found.insert(0, f"leg {at}, {label}: {LEG_HEALTH.get(letter, 'failed')}")
                advice = f"'dmcopy mirror replace {name} {at} NEWDEV' puts another in its place"
        if status.log_health != "A":
            found.append(LOG_HEALTH.get(status.log_health, "the log failed"))
        return f"{name}: {'; '.join(found)}; {status.sync} regions are in sync; {advice}"
