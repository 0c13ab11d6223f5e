# ruff: noqa: RUF009 (what stands after = is always dataclasses.field, by way of a helper)
"""The status of targets with legs: mirror, striped, raid, multipath.

Forms: drivers/md/dm-raid1.c, dm-log.c, dm-stripe.c, dm-raid.c and dm-mpath.c, in 6.1 and 6.12.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from dmcopy.status.base import Status, register
from dmcopy.table.record import (
    FieldKind,
    Ratio,
    Record,
    Spec,
    device_field,
    number_field,
    ratio_field,
    word_field,
)
from dmcopy.table.words import TableError, Words

LEG_HEALTH = {
    "A": "alive",
    "F": "a flush failed",
    "D": "a write failed: the leg is out of sync",
    "S": "synchronisation failed",
    "R": "a read failed: the data of the other legs is good",
    "U": "failed in an unknown way",
}
LOG_HEALTH = {"A": "alive", "D": "the log device failed", "F": "a flush of the log failed"}


@dataclass(frozen=True, slots=True)
class Member(Record):
    """A device of a status line."""

    device: str = device_field()


def _take_members(words: Words) -> tuple[Member, ...]:
    count = words.number("number of legs")
    return tuple(Member(word) for word in words.take(count, "number of legs"))


def _health(words: Words, count: int) -> str:
    letters = words.group("health words")
    if len(letters) != 1 or len(letters[0]) != count:
        raise TableError(words.target, "health", " ".join(letters), f"must be {count} letters")
    return letters[0]


def _describe(members: tuple[Member, ...], health: str) -> str:
    found = [
        f"{member.device}: {LEG_HEALTH.get(letter, letter)}"
        for member, letter in zip(members, health, strict=True)
        if letter != "A"
    ]
    return "; ".join(found)


@register
@dataclass(frozen=True, slots=True)
class MirrorStatus(Status):
    """`<#legs> <device>... <in sync>/<regions> 1 <health> <#log words> <log words>`.

    `health` has a letter for each leg, the worst that happened to it (`LEG_HEALTH`). `log` is
    `("core",)` or `("disk", device, letter)` (`LOG_HEALTH`); a cluster log says what it likes.
    """

    name: ClassVar[str] = "mirror"

    members: tuple[Member, ...]
    sync: Ratio
    health: str
    log: tuple[str, ...]

    @classmethod
    def take(cls, words: Words) -> Self:
        members = _take_members(words)
        sync = Spec(FieldKind.RATIO).take(words, "in sync")
        health = _health(words, len(members))
        if (words.peek() or "").isdigit():
            return cls(members, sync, health, words.group("log words"))
        # A cluster log whose daemon is gone is reported without its count (userspace_status).
        return cls(members, sync, health, words.take(len(words), "log words"))

    def words(self) -> list[str]:
        head = [str(len(self.members)), *(member.device for member in self.members)]
        log = [str(len(self.log)), *self.log]
        if self.log[2:] == ("COM_FAILURE",):
            log = list(self.log)
        return [*head, str(self.sync), "1", self.health, *log]

    @property
    def legs(self) -> tuple[str, ...]:
        """The device of each leg."""
        return tuple(member.device for member in self.members)

    @property
    def in_sync(self) -> bool:
        """Whether every region is in sync."""
        return self.sync.used == self.sync.total

    @property
    def log_health(self) -> str:
        """The letter of a disk log; A for a log in memory."""
        return self.log[2] if self.log[:1] == ("disk",) else "A"

    @property
    def trouble(self) -> str:
        """Which legs, or the log, have failed and how."""
        legs = _describe(self.members, self.health)
        log = "" if self.log_health == "A" else LOG_HEALTH.get(self.log_health, self.log_health)
        return "; ".join(filter(None, (legs, log)))


@register
@dataclass(frozen=True, slots=True)
class StripedStatus(Status):
    """`<#stripes> <device>... 1 <health>`: A, or D after any error, for each stripe."""

    name: ClassVar[str] = "striped"

    members: tuple[Member, ...]
    health: str

    @classmethod
    def take(cls, words: Words) -> Self:
        members = _take_members(words)
        return cls(members, _health(words, len(members)))

    def words(self) -> list[str]:
        devices = [member.device for member in self.members]
        return [str(len(devices)), *devices, "1", self.health]

    @property
    def trouble(self) -> str:
        """Which stripes have seen an error."""
        broken = zip(self.members, self.health, strict=True)
        return "; ".join(f"{one.device}: an error" for one, letter in broken if letter != "A")


@register
@dataclass(frozen=True, slots=True)
class RaidStatus(Status):
    """`<level> <#devices> <health> <progress> <action> <mismatches> <data offset> <journal>`.

    `health`: A in sync, a not yet, D dead, - missing. `journal`: A write-through, a write-back,
    D dead, - none. Versions before 1.9 and 1.10 lack the last two.
    """

    name: ClassVar[str] = "raid"

    level: str = word_field()
    devices_count: int = number_field()
    health: str = word_field()
    progress: Ratio = ratio_field()
    action: str = word_field()
    mismatches: int = number_field()
    data_offset: int | None = number_field(optional=True)
    journal: str | None = word_field(optional=True)

    @property
    def trouble(self) -> str:
        """Which devices are dead."""
        dead = [str(index) for index, letter in enumerate(self.health) if letter == "D"]
        return f"dead devices: {', '.join(dead)}" if dead else ""


@dataclass(frozen=True, slots=True)
class PathStatus(Record):
    """`<device> <A|F> <failures> <selector's words>`: A active, F failed."""

    device: str = device_field()
    state: str = word_field()
    failures: int = number_field()
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupStatus(Record):
    """`<A|E|D> <#words> ... <#paths> <#path words> <path>...`: active, enabled, disabled."""

    state: str
    selector: tuple[str, ...]
    paths: tuple[PathStatus, ...]

    @classmethod
    def take(cls, words: Words) -> Self:
        state, selector = words.word("state"), words.group("selector words")
        count, each = words.number("number of paths"), words.number("words for each path")
        paths = []
        for _ in range(count):
            device, path_state = words.word("path"), words.word("state")
            failures = words.number("failures")
            arguments = words.take(each, "words for each path")
            paths.append(PathStatus(device, path_state, failures, arguments))
        return cls(state, selector, tuple(paths))

    def words(self) -> list[str]:
        each = len(self.paths[0].arguments) if self.paths else 0
        found = [self.state, str(len(self.selector)), *self.selector]
        found += [str(len(self.paths)), str(each)]
        return found + [word for one in self.paths for word in (*Record.words(one), *one.arguments)]


@register
@dataclass(frozen=True, slots=True)
class MultipathStatus(Status):
    """`2 <queueing> <initialising> <#handler words> ... <#groups> <next group> <group>...`."""

    name: ClassVar[str] = "multipath"

    features: tuple[str, ...]
    handler: tuple[str, ...]
    next_group: int
    groups: tuple[GroupStatus, ...]

    @classmethod
    def take(cls, words: Words) -> Self:
        features, handler = words.group("features"), words.group("handler words")
        count, next_group = words.number("number of groups"), words.number("next group")
        groups = tuple(GroupStatus.take(words) for _ in range(count))
        return cls(features, handler, next_group, groups)

    def words(self) -> list[str]:
        found = [str(len(self.features)), *self.features]
        found += [str(len(self.handler)), *self.handler]
        found += [str(len(self.groups)), str(self.next_group)]
        return found + [word for group in self.groups for word in group.words()]

    @property
    def trouble(self) -> str:
        """Which paths have failed."""
        paths = [path for group in self.groups for path in group.paths if path.state == "F"]
        return "; ".join(f"{path.device}: failed {path.failures} times" for path in paths)
