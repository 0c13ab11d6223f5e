"""mirror, and its logs.

Rules: drivers/md/dm-raid1.c, dm-log.c and dm-log-userspace-base.c, read in 6.1 and 6.12 and
measured on both.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Final, Self

from dmcopy.suggest import did_you_mean
from dmcopy.table.record import MAX32, Record, device_field, number_field, word_field
from dmcopy.table.target import Leg, Target, check_legs, leg_words, register, take_legs
from dmcopy.table.words import TableError, Words

MAX_LEGS = 9  # DM_KCOPYD_MAX_REGIONS + 1: the default leg and eight destinations
FEATURES = {"handle_errors": 0, "keep_log": 0}
SYNC = ("sync", "nosync")
REGION_SIZE: Final = 4096
"""The default of those who make mirrors: 2 MiB, as lvm2's (raid_region_size, lvm.conf of 2.03)."""


@dataclass(frozen=True, slots=True)
class CoreLog(Record):
    """`core <1|2> <region_size> [sync|nosync]`: the log lives in memory and dies with the table.

    `region_size` is in sectors: a power of two from 2 to the length. `nosync` says that the legs
    are equal already.
    """

    name: ClassVar[str] = "core"

    region_size: int = number_field(2, MAX32, power=True)
    sync: str | None = word_field(choices=SYNC, optional=True)


@dataclass(frozen=True, slots=True)
class DiskLog(Record):
    """`disk <2|3> <device> <region_size> [sync|nosync]`: the log is on a device of its own.

    `sync` and `nosync` count at every resume of the table: a table that keeps `nosync` forgets
    what a crash left dirty.
    """

    name: ClassVar[str] = "disk"

    device: str = device_field()
    region_size: int = number_field(2, MAX32, power=True)
    sync: str | None = word_field(choices=SYNC, optional=True)


@dataclass(frozen=True, slots=True)
class OtherLog(Record):
    """Another log type, such as `userspace`: its name and its words as they are."""

    log_type: str
    arguments: tuple[str, ...] = ()

    def words(self) -> list[str]:
        return list(self.arguments)


Log = CoreLog | DiskLog | OtherLog


@register
@dataclass(frozen=True, slots=True)
class Mirror(Target):
    """`mirror <log> <#log words> <log words> <#legs> <device> <offset>... [<#features> ...]`.

    Two to nine legs; the first is the default one. `features`: handle_errors (a failed leg is
    reported, and writes wait for a table that does without it) and keep_log (they do not wait),
    which needs handle_errors. Unlike other targets' features these are case-sensitive.
    """

    name: ClassVar[str] = "mirror"

    log: Log
    legs: tuple[Leg, ...]
    features: tuple[str, ...] | None = None

    @classmethod
    def take(cls, words: Words) -> Self:
        log = _take_log(words)
        legs = take_legs(words, words.number("number of legs"), "legs")
        return cls(log, legs, words.group("features") if len(words) else None)

    def words(self) -> list[str]:
        kind = self.log.log_type if isinstance(self.log, OtherLog) else self.log.name
        found = self.log.words()
        found = [kind, str(len(found)), *found, str(len(self.legs)), *leg_words(self.legs)]
        return found if self.features is None else [*found, str(len(self.features)), *self.features]

    def _check(self, length: int) -> None:
        self._check_log(length)
        if not 2 <= len(self.legs) <= MAX_LEGS:
            raise self._wrong("number of legs", len(self.legs), f"must be from 2 to {MAX_LEGS}")
        check_legs(self, self.legs)
        for feature in self.features or ():
            if feature not in FEATURES:
                raise self._wrong("feature", feature, f"is unknown; known: {', '.join(FEATURES)}")
        if "keep_log" in (self.features or ()) and "handle_errors" not in (self.features or ()):
            raise self._wrong("feature", "keep_log", "needs handle_errors as well")

    def _check_log(self, length: int) -> None:
        if isinstance(self.log, OtherLog):
            return
        try:
            self.log.check_words()
        except TableError as error:
            raise self._wrong(f"{error.target} log {error.word}", error.value, error.rule) from None
        size = self.log.region_size
        if size > length:
            rule = f"must not exceed the length, {length} sectors"
            raise self._wrong("region_size", size, rule)
        if -(-length // size) > MAX32:
            rule = "makes too many regions: at most 4294967295 (create_log_context in dm-log.c)"
            raise self._wrong("region_size", size, rule)

    def canonical(self) -> Self:
        """Return the value as the kernel would echo it: features in order."""
        known = tuple(word for word in FEATURES if word in (self.features or ()))
        return dataclasses.replace(self, features=known or None)

    @property
    def unknown(self) -> str:
        """The log, if it is of an unknown kind."""
        if not isinstance(self.log, OtherLog) or self.log.log_type == "userspace":
            return ""
        hint = did_you_mean(self.log.log_type, ("core", "disk", "userspace"))
        return f"log '{self.log.log_type}'{hint}"

    def describe(self) -> str:
        legs = ", ".join(map(str, self.legs))
        return f"is written to each of {legs}; what differs is tracked {_where(self.log)}"


def _take_log(words: Words) -> Log:
    kind = words.word("log type")
    arguments = words.group("log words")
    if kind not in ("core", "disk"):
        return OtherLog(kind, arguments)
    # An error is the mirror's: a log is no target of its own.
    cursor = Words(words.target, arguments)
    log: Log = CoreLog.take(cursor) if kind == "core" else DiskLog.take(cursor)
    cursor.end()
    return log


def _where(log: Log) -> str:
    if isinstance(log, OtherLog):
        unknown = "" if log.log_type == "userspace" else ", which dmcopy does not know"
        return f"by log '{log.log_type}'{unknown}"
    place = "in memory" if isinstance(log, CoreLog) else f"on {log.device}"
    return f"{place} in regions of {log.region_size} sectors"
