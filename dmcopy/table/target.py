"""Targets: what a line of a table maps its sectors to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, dataclass_transform

from dmcopy.lazy import Registry
from dmcopy.suggest import did_you_mean
from dmcopy.table.record import Record, device_field, number_field
from dmcopy.table.words import TableError, Words

TARGETS: Registry[Target] = Registry(
    "dmcopy.table",
    crypt="crypt integrity verity",
    devices="vdo zoned",
    faults="delay dust flakey log-writes",
    linear="ebs error linear striped switch unstriped zero",
    mirror="mirror",
    multipath="multipath",
    pools="cache clone era thin thin-pool writecache",
    raid="raid",
    snapshot="snapshot snapshot-merge snapshot-origin",
)

register = TARGETS.register


@dataclass(frozen=True, slots=True)
class Target(Record):
    """What a table line maps to. `name` is the kernel's word for it.

    `singleton` targets must be the only line of their table (DM_TARGET_SINGLETON in the target's
    own file in drivers/md; dm_table_add_target in dm-table.c refuses company).
    """

    singleton: ClassVar[bool] = False

    def check(self, length: int) -> None:
        """Raise TableError for what the kernel would refuse of a line of `length` sectors.

        What only the devices can tell (their size, their block size, their holders) is left to the
        kernel.
        """
        self.check_words()
        self._check(length)

    def _check(self, length: int) -> None:
        """The rules that involve several words or the length."""

    def describe(self) -> str:
        """Say in words what the line does."""
        return f"is handled by the kernel's '{self.name}' target"

    @property
    def unknown(self) -> str:
        """Which word of the line dmcopy does not know, and what it may have been meant to be."""
        return ""

    def _wrong(self, word: str, value: object, rule: str) -> TableError:
        return TableError(self.name, word, value, rule)


@dataclass_transform(frozen_default=True)
class Line(Target):
    """The words of a target of your own, one field for each; see the guide to targets.

    A subclass is a frozen dataclass without being marked as one. Rules that involve several words,
    or the length of the line, are for `check`, which calls this one's first.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        dataclass(frozen=True)(cls)

    def describe(self) -> str:
        return f"is handled by target '{self.name}' of module {type(self).__module__}"


@dataclass(frozen=True, slots=True)
class Raw(Target):
    """A target that this version does not know: its name and its words, as they are."""

    target: str
    arguments: tuple[str, ...] = ()

    def words(self) -> list[str]:
        return list(self.arguments)

    @property
    def unknown(self) -> str:
        """The target's name, and the one that it may have been meant to be."""
        return f"target '{self.target}'{did_you_mean(self.target, TARGETS)}"

    def describe(self) -> str:
        """Say that nothing is known."""
        return f"goes to target '{self.target}', which dmcopy does not know: passed on as it is"


@dataclass(frozen=True, slots=True)
class Leg(Record):
    """A device, and the sector of it where the mapping starts: a stripe, a mirror leg, a path."""

    device: str = device_field()
    offset: int = number_field()

    def __str__(self) -> str:
        return f"{self.device} at sector {self.offset}"


def take_legs(words: Words, count: int, what: str) -> tuple[Leg, ...]:
    """Take `count` pairs of device and offset. Raises TableError when they are not there."""
    if 2 * count > len(words):
        rule = f"needs {count} pairs of device and offset, but {len(words)} words follow"
        raise TableError(words.target, f"number of {what}", count, rule)
    return tuple(Leg(words.word("device"), words.number("offset")) for _ in range(count))


def leg_words(legs: tuple[Leg, ...]) -> list[str]:
    """Return the legs as the words of a line."""
    return [word for leg in legs for word in leg.words()]


def check_legs(target: Target, legs: tuple[Leg, ...]) -> None:
    """Raise TableError when a leg's words break a rule."""
    for leg in legs:
        if not leg.device:
            raise TableError(target.name, "device", leg.device, "must not be empty")
        if leg.offset < 0:
            raise TableError(target.name, "offset", leg.offset, "must not be negative")


def target_class(name: str) -> type[Target]:
    """Return the type of target `name`; Raw for an unknown one. Raises as `Registry.find` does."""
    return TARGETS.find(name) or Raw


def parse_target(name: str, words: list[str]) -> Target:
    """Return the typed value of a target's words. Raises TableError for an unknown form."""
    cls = target_class(name)
    if cls is Raw:
        return Raw(name, tuple(words))
    cursor = Words(name, words)
    value = cls.take(cursor)
    cursor.end()
    return value
