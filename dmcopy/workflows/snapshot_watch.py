"""Watching how full a snapshot's COW is, and doing something before it overflows."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dmcopy.errors import DeviceError, DmcopyError
from dmcopy.status import SnapshotStatus
from dmcopy.workflows.snapshot import Snapshots
from dmcopy.workflows.snapshot_merging import pause
from dmcopy.workflows.snapshot_status import read

SOONEST_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Level:
    """A look at a snapshot, in sectors of its COW, or what was done about it.

    `event`: level, threshold, extended, command, failed (an extension or the command; the watch
    goes on), lost or gone. `message` says more.
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
    """What to do at `percent`: run `command`, and make the COW `extend` sectors longer.

    `more`: the device to take the room from, see `Snapshots.extend`. The command is an argument
    list; it finds the snapshot in DMCOPY_SNAPSHOT and the level in DMCOPY_PERCENT.
    """

    percent: float
    command: Sequence[str] = ()
    extend: int = 0
    more: str = ""


def watch(
    snapshots: Snapshots,
    name: str,
    *,
    interval: float,
    threshold: Threshold | None = None,
    run: Callable[..., subprocess.CompletedProcess[bytes]] = subprocess.run,
) -> Iterator[Level]:
    """Yield the level every `interval` seconds until the snapshot is lost or gone.

    Overflow of the COW is no event of the device, so this looks at the numbers; it looks sooner
    where at the present rate the threshold would be reached before the next look. An invalidation
    is an event and seen at once. The threshold acts once each time that it is reached: again after
    an extension, or after the level was below it. What fails then is told, and the watch goes on.
    """
    mapper = snapshots.mapper
    passed = False
    before: tuple[float, float] | None = None
    while True:
        try:
            status = read(mapper, name)
        except DeviceError:
            yield Level("gone", name, time.time(), message="there is no such snapshot any more")
            return
        level = _level("level", name, status)
        if status.state:
            yield _level("lost", name, status)
            return
        yield level
        percent = level.percent or 0.0
        if threshold is not None and percent >= threshold.percent:
            if not passed:
                yield _level("threshold", name, status)
                done = list(_act(snapshots, name, level, threshold, run))
                yield from done
                passed, before = not any(one.event == "extended" for one in done), None
                continue
        else:
            passed = False
        now = (time.monotonic(), percent)
        pause(mapper, name, _patience(before, now, interval, threshold))
        before = now


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
    snapshots: Snapshots,
    name: str,
    level: Level,
    threshold: Threshold,
    run: Callable[..., subprocess.CompletedProcess[bytes]],
) -> Iterator[Level]:
    if threshold.extend:
        size = (level.total or 0) + threshold.extend
        try:
            snapshots.extend(name, size, more=threshold.more)
            yield Level("extended", name, round(time.time(), 3), total=size)
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


def _patience(
    before: tuple[float, float] | None,
    now: tuple[float, float],
    interval: float,
    threshold: Threshold | None,
) -> float:
    """Return how long to wait: half of the time in which the threshold would be reached."""
    if before is None or threshold is None or now[1] <= before[1] or now[1] >= threshold.percent:
        return interval
    rate = (now[1] - before[1]) / max(now[0] - before[0], 1e-6)
    return max(SOONEST_SECONDS, min(interval, (threshold.percent - now[1]) / rate / 2))
