"""Watching how full a snapshot's COW is, and doing something before it overflows."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from dmcopy.errors import DeviceError, DmcopyError
from dmcopy.status import SnapshotStatus
from dmcopy.workflows.session import Session
from dmcopy.workflows.site import Site, pause
from dmcopy.workflows.snapshot import Growth, plan_extend
from dmcopy.workflows.snapshot_find import find
from dmcopy.workflows.snapshot_status import read

SOONEST_SECONDS: Final = 0.05
_SLOWER: Final = 2.0  # a wait is at most this many times as long as the one before


@dataclass(frozen=True, slots=True)
class Level:
    """A look at a snapshot, in sectors of its COW, or what was done about it.

    `event`: level, threshold, extended, command, failed (an extension or the command; the watch
    continues), lost or gone. `message` says more; for a snapshot that is lost, how full it was when
    it was last looked at, and how long ago that was.
    """

    event: str
    name: str
    time: float
    percent: float | None = None
    used: int | None = None
    total: int | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Threshold:
    """What to do at `percent`: run `command`, and make the COW longer as `extend` says.

    `more`: the device to take the room from, see `plan_extend`, whatever is on it: then it is
    too late to ask (`check_more` does). The command is an argument list; it finds the snapshot in
    DMCOPY_SNAPSHOT and the level in DMCOPY_PERCENT.
    """

    percent: float
    command: Sequence[str] = ()
    extend: Growth | None = None
    more: str = ""


def watch(
    session: Session,
    name: str,
    *,
    interval: float,
    threshold: Threshold | None = None,
    run: Callable[..., subprocess.CompletedProcess[bytes]] = subprocess.run,
) -> Iterator[Level]:
    """Yield the level every `interval` seconds until the snapshot is lost or gone.

    How full the COW is is no event of the device, so this looks at the numbers: in quick succession
    first, then every `interval`, but sooner where at the present rate the threshold would be
    reached before. So the snapshot lives if the writes of one interval, and those during
    an extension (a dozen commands), fit into the space that the threshold leaves free.

    An invalidation is an event and seen immediately. The threshold acts once each time that it is
    reached: again after an extension, or after the level was below it. What fails then is told, and
    the watch continues. Raises UsageError when there is no such snapshot to begin with.
    """
    find(Site(session.mapper), name)
    try:
        yield from _until_lost(session, name, _Pace(interval, threshold), threshold, run)
    except DeviceError as error:
        if error.errno != errno.ENXIO:
            raise
        message = "there is no such snapshot any more"
        yield Level("gone", name, round(time.time(), 3), message=message)


def _until_lost(
    session: Session,
    name: str,
    pace: _Pace,
    threshold: Threshold | None,
    run: Callable[..., subprocess.CompletedProcess[bytes]],
) -> Iterator[Level]:
    passed = False
    while True:
        status = read(session.mapper, name)
        level = _level("level", name, status)
        if status.state:
            yield replace(level, event="lost", message=f"{level.message}{pace.last_words()}")
            return
        pace.note(level.percent or 0.0)
        yield level
        percent = level.percent or 0.0
        if threshold is not None and percent >= threshold.percent:
            if not passed:
                yield _level("threshold", name, status)
                passed = True
                for done in _act(session, name, level, threshold, run):
                    passed = passed and done.event != "extended"
                    yield done
                continue
        else:
            passed = False
        pause(session.mapper, name, pace.patience())


def _level(event: str, name: str, status: SnapshotStatus) -> Level:
    used = status.used
    return Level(
        event,
        name,
        round(time.time(), 3),
        None if status.percent is None else round(status.percent, 2),
        None if used is None else used.used,
        None if used is None else used.total,
        status.trouble,
    )


def _act(
    session: Session,
    name: str,
    level: Level,
    threshold: Threshold,
    run: Callable[..., subprocess.CompletedProcess[bytes]],
) -> Iterator[Level]:
    if threshold.extend is not None:
        try:
            session.check_free(name)
            plan = plan_extend(
                session.mapper, name, threshold.extend, more=threshold.more, force=True
            )
            session.run(plan)
            yield Level("extended", name, round(time.time(), 3), total=plan.total)
        except DmcopyError as error:  # the command, if there is one, can still do something
            yield Level("failed", name, round(time.time(), 3), message=str(error))
    if threshold.command:
        env = {**os.environ, "DMCOPY_SNAPSHOT": name, "DMCOPY_PERCENT": str(level.percent)}
        try:
            code = run(list(threshold.command), env=env, stdin=subprocess.DEVNULL).returncode
            message = f"{threshold.command[0]}: exit {code}"
            yield Level("command", name, round(time.time(), 3), message=message)
        except OSError as error:
            message = f"{threshold.command[0]}: cannot run it: {error.strerror}"
            yield Level("failed", name, round(time.time(), 3), message=message)


class _Pace:
    """How long to wait between two looks."""

    def __init__(self, interval: float, threshold: Threshold | None) -> None:
        self._interval = interval
        self._threshold = 100.0 if threshold is None else threshold.percent
        self._waited = 0.0
        self._looks: list[tuple[float, float]] = []  # the last two: when, and how full in percent

    def note(self, percent: float) -> None:
        """Note what a look has found."""
        self._looks = [*self._looks[-1:], (time.monotonic(), percent)]

    def patience(self) -> float:
        """Return how long to wait: half of the time in which the threshold would be reached."""
        self._waited = min(self._interval, max(self._waited * _SLOWER, SOONEST_SECONDS))
        (then, before), (now, percent) = self._looks[0], self._looks[-1]
        if before < percent < self._threshold:
            rate = (percent - before) / max(now - then, 1e-6)
            half = (self._threshold - percent) / rate / 2
            self._waited = min(self._waited, max(half, SOONEST_SECONDS))
        return self._waited

    def last_words(self) -> str:
        """Return what was last seen of a snapshot that is lost."""
        if not self._looks:
            return ""
        then, percent = self._looks[-1]
        return f"; {time.monotonic() - then:.1f} s before, it was {percent:.1f}% full"
