"""A mirror as it is at the moment: its legs and their health, its synced regions, its log."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

from dmcopy.block.devno import openable
from dmcopy.errors import DmcopyError, PartialError, UsageError
from dmcopy.mapper.base import Mapper
from dmcopy.mirror.logfile import read_log
from dmcopy.ondisk.mirror_log import MirrorLog
from dmcopy.status import MirrorStatus
from dmcopy.status.legs import LEG_HEALTH, LOG_HEALTH
from dmcopy.table import Mirror as MirrorTarget
from dmcopy.table import Table
from dmcopy.table.mirror import CoreLog, DiskLog, Log
from dmcopy.table.target import Leg
from dmcopy.workflows.site import Site

ALIVE: Final = "A"


@dataclass(frozen=True, slots=True)
class Mirror:
    """The device `name`, whose table is one line of target mirror. Legs count from 0.

    Attributes:
        length: in sectors.
        target: the line of its table, with the devices as the engine calls them.
        status: the status of that line.
    """

    name: str
    length: int
    target: MirrorTarget
    status: MirrorStatus

    @classmethod
    def read(cls, mapper: Mapper, name: str) -> Mirror:
        """Return the mirror of this name. Raises UsageError if that is no mirror."""
        table, lines = mapper.table(name), mapper.status(name, flush=False)
        found = [line.target for line in table if isinstance(line.target, MirrorTarget)]
        if len(table.lines) != 1 or not found:
            what = ", ".join(dict.fromkeys(line.target_name for line in table)) or "no table"
            raise UsageError(f"{name} is not a mirror: it has {what}")
        status = lines[0].status
        assert isinstance(status, MirrorStatus)
        return cls(name, table.length, found[0], status)

    @property
    def legs(self) -> tuple[Leg, ...]:
        """The device and offset of each leg; the first is the default one, which resync reads."""
        return self.target.legs

    @property
    def failed(self) -> tuple[int, ...]:
        """The legs that something has happened to."""
        return tuple(at for at, letter in enumerate(self.status.health) if letter != ALIVE)

    @property
    def alive(self) -> tuple[int, ...]:
        """The legs that nothing has happened to."""
        return tuple(at for at, letter in enumerate(self.status.health) if letter == ALIVE)

    @property
    def in_sync(self) -> bool:
        """Whether every region is, on every leg."""
        return self.status.in_sync

    @property
    def region_size(self) -> int:
        """In sectors. Raises UsageError for a cluster's log, which these workflows leave alone."""
        return self.log.region_size

    @property
    def log(self) -> CoreLog | DiskLog:
        """The log of the table. Raises UsageError for a cluster's."""
        if isinstance(self.target.log, CoreLog | DiskLog):
            return self.target.log
        raise UsageError(f"{self.name} has a log of type {self.target.log.log_type}: not ours")

    def trouble(self, site: Site) -> str:
        """Return what has happened to legs and log, with the device of each; "" if nothing."""
        found = [
            f"leg {at}, {site.label(self.legs[at].device)}: "
            f"{LEG_HEALTH.get(self.status.health[at], 'failed')}"
            for at in self.failed
        ]
        if self.status.log_health != ALIVE:
            found.append(LOG_HEALTH.get(self.status.log_health, "the log failed"))
        return "; ".join(found)

    def check_healthy(self, site: Site) -> None:
        """Raise PartialError, naming it, if a leg or the log has failed."""
        trouble = self.trouble(site)
        if trouble:
            raise PartialError(f"{self.name}: {trouble}; {self.advice}")

    def leg(self, word: str, site: Site) -> int:
        """Return the number of the leg that `word` is: a number, or a device. Raises UsageError."""
        if word.isascii() and word.isdecimal() and int(word) < len(self.legs):
            return int(word)
        wanted = site.key(word)
        for at, leg in enumerate(self.legs):
            info = site.info(leg.device)
            if wanted == site.key(leg.device) or (info is not None and info.name == word):
                return at
        legs = ", ".join(f"{at} {site.label(leg.device)}" for at, leg in enumerate(self.legs))
        raise UsageError(f"{self.name} has no leg {word}; its legs are {legs}")

    def read_log(self) -> MirrorLog | None:
        """Return what the disk log says now; None for a log in memory, which cannot be read."""
        log = self.log
        if isinstance(log, CoreLog):
            return None
        return read_log(openable(log.device))

    def table(self, legs: tuple[Leg, ...], log: Log) -> Table:
        """Return the table of this mirror with other legs and another log."""
        return Table.of(self.length, dataclasses.replace(self.target, legs=legs, log=log))

    @property
    def advice(self) -> str:
        """What a person can do about a leg, or the log, that has failed."""
        if self.failed:
            replace = f"'dmcopy mirror replace {self.name} {self.failed[0]} NEWDEV'"
            return f"{replace} puts another in place"
        drop = f"'dmcopy mirror drop {self.name} --keep {self.alive[0]}'"
        again = f"'dmcopy mirror make {self.name} --from {self.name}'"
        return f"{drop} continues without a log, and {again} with another one"


def fresh(log: CoreLog | DiskLog) -> CoreLog | DiskLog:
    """Return a log in which nothing is in sync: the first leg is copied to the others, whole."""
    return dataclasses.replace(log, sync="sync")


def kept(log: CoreLog | DiskLog, *, in_sync: bool) -> CoreLog | DiskLog:
    """Return the log for a table that takes over from one: what is in sync stays so.

    A log in memory dies with its table, so that its successor can only be told that all is in sync.
    A disk log must not be: 'nosync' would be obeyed at every resume, after a crash as well.
    """
    return dataclasses.replace(log, sync="nosync" if in_sync and isinstance(log, CoreLog) else None)


def mirrors(mapper: Mapper) -> list[Mirror]:
    """Return every mirror of the engine that is one line."""
    found = []
    for info in mapper.ls():
        lines = mapper.table(info.name).lines if info.live else ()
        if len(lines) == 1 and isinstance(lines[0].target, MirrorTarget):
            found.append(Mirror.read(mapper, info.name))
    return found


def usable(mirror: Mirror, leaving: int) -> list[int]:
    """Return the legs that a mirror has without leg `leaving`, the one to copy from first.

    A leg that nothing has happened to has every write that ended well: with handle_errors a write
    that failed on another leg is held. With keep_log it went to the first of them alone, which is
    why that one comes first. Raises DmcopyError when no good leg would be left.
    """
    staying = [at for at in mirror.alive if at != leaving]
    if not staying or (0 in mirror.failed and not mirror.status.sync.used):
        raise DmcopyError(
            f"{mirror.name}: without leg {leaving} no leg has all of the data; nothing was changed"
        )
    if not mirror.in_sync and mirror.alive[0] != staying[0]:
        raise DmcopyError(
            f"{mirror.name}: leg {leaving} is the only one that has all of the data while "
            f"{mirror.status.sync} regions are in sync; wait for the others first"
        )
    return staying
