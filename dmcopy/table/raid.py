"""raid: the kernel's md behind a table line.

Rules: raid_ctr and parse_raid_params in drivers/md/dm-raid.c, read in 6.1 and 6.12.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

from dmcopy.table.record import Record, device_field, each_feature, number_field, word_field
from dmcopy.table.target import Target, register
from dmcopy.table.words import Words

MAX_DEVICES = 253
# The fewest devices of each: one more than hold parity (raid_set_alloc).
LEVELS = {
    **dict.fromkeys(["raid0", "raid1"], 1),
    **dict.fromkeys(["raid10", "raid10_near", "raid10_offset", "raid10_far"], 1),
    **dict.fromkeys(["raid4", "raid5_n", "raid5_ls", "raid5_rs", "raid5_la", "raid5_ra"], 2),
    **dict.fromkeys(["raid6_zr", "raid6_nr", "raid6_nc", "raid6_n_6"], 3),
    **dict.fromkeys(["raid6_ls_6", "raid6_rs_6", "raid6_la_6", "raid6_ra_6"], 3),
}
OPTIONS = {
    "sync": 0,
    "nosync": 0,
    "rebuild": 1,
    "daemon_sleep": 1,
    "min_recovery_rate": 1,
    "max_recovery_rate": 1,
    "write_mostly": 1,
    "max_write_behind": 1,
    "stripe_cache": 1,
    "region_size": 1,
    "raid10_copies": 1,
    "raid10_format": 1,
    "delta_disks": 1,
    "data_offset": 1,
    "journal_dev": 1,
    "journal_mode": 1,
    "raid10_use_near_sets": 0,
}
_TEXT = ("raid10_format", "journal_dev", "journal_mode")
_REPEATED = ("rebuild", "write_mostly")
_SYNC = {"sync", "rebuild", "daemon_sleep", "min_recovery_rate", "max_recovery_rate"}
_SYNC |= {"region_size", "delta_disks", "data_offset"}
_PARITY = _SYNC | {"stripe_cache", "journal_dev", "journal_mode"}
# Which options a level takes: the *_VALID_FLAGS of dm-raid.c.
VALID = {
    "raid0": {"data_offset"},
    "raid1": _SYNC | {"nosync", "write_mostly", "max_write_behind"},
    "raid10": _SYNC | {"nosync", "raid10_copies", "raid10_format", "raid10_use_near_sets"},
    "raid4": _PARITY | {"nosync"},
    "raid5": _PARITY | {"nosync"},
    "raid6": _PARITY,
}


@dataclass(frozen=True, slots=True)
class RaidLeg(Record):
    """A pair of metadata and data device; None, written `-`, is a device that is missing."""

    metadata: str | None = device_field(dash=True)
    data: str | None = device_field(dash=True)


@register
@dataclass(frozen=True, slots=True)
class Raid(Target):
    """`raid <level> <#words> <chunk_size> [<option>...] <#devices> <metadata> <data>...`.

    `chunk_size` in sectors: a power of two of at least 8, and 0 for raid1, which has none.
    """

    name: ClassVar[str] = "raid"

    level: str = word_field()
    chunk_size: int = number_field()
    options: tuple[str, ...] = ()
    legs: tuple[RaidLeg, ...] = ()

    @classmethod
    def take(cls, words: Words) -> Self:
        level = words.word("level")
        parameters = Words(words.target, words.group("raid words"))
        chunk_size = parameters.number("chunk_size")
        options = parameters.take(len(parameters), "options")
        count = words.number("number of devices")
        legs = tuple(RaidLeg.take(words) for _ in range(count))
        return cls(level, chunk_size, options, legs)

    def words(self) -> list[str]:
        head = [self.level, str(len(self.options) + 1), str(self.chunk_size), *self.options]
        return [*head, str(len(self.legs)), *(word for leg in self.legs for word in leg.words())]

    def _check(self, length: int) -> None:
        del length
        if self.level.lower() not in LEVELS:
            raise self._wrong("level", self.level, f"is unknown; known: {', '.join(LEVELS)}")
        self._check_chunk()
        fewest = LEVELS[self.level.lower()]
        if not fewest <= len(self.legs) <= MAX_DEVICES:
            rule = f"must be from {fewest} to {MAX_DEVICES} for {self.level}"
            raise self._wrong("number of devices", len(self.legs), rule)
        for index, leg in enumerate(self.legs):
            if leg.metadata is not None and leg.data is None:
                rule = f"of device {index} needs a data device"
                raise self._wrong("metadata", leg.metadata, rule)
        self._check_options()

    def _check_chunk(self) -> None:
        size = self.chunk_size
        if not self._is("raid1") and (size < 8 or size & (size - 1)):
            raise self._wrong("chunk_size", size, "must be a power of two of at least 8 sectors")

    def _check_options(self) -> None:
        valid = next(VALID[key] for key in sorted(VALID, reverse=True) if self._is(key))
        seen: list[str] = []
        for option in each_feature(self.name, self.options, OPTIONS):
            key = option[0]
            if key not in valid:
                raise self._wrong("option", key, f"is not for {self.level}")
            if key in seen and key not in _REPEATED:
                raise self._wrong("option", key, "is there twice")
            if len(option) > 1 and key not in _TEXT:
                self._check_value(key, option[1])
            seen.append(key)
        for one, other in (("sync", "nosync"), ("rebuild", "sync"), ("rebuild", "nosync")):
            if one in seen and other in seen:
                raise self._wrong("option", one, f"excludes {other}")

    def _check_value(self, key: str, text: str) -> None:
        digits = text.removeprefix("-") if key == "delta_disks" else text
        value = Words(self.name, ()).as_number(key, digits)
        if key in _REPEATED and value >= len(self.legs):
            raise self._wrong(key, value, f"must be from 0 to {len(self.legs) - 1}")
        if key == "region_size" and value & (value - 1):
            raise self._wrong(key, value, "must be a power of two")

    def _is(self, level: str) -> bool:
        # raid10 begins with raid1: compare what is before the layout.
        return self.level.lower().partition("_")[0] == level

    def with_devices(self, rename: Callable[[str], str]) -> Self:
        """Return the same value with every device renamed, the journal's too."""
        options = list(self.options)
        for index, option in enumerate(options[:-1]):
            if option.lower() == "journal_dev":
                options[index + 1] = rename(options[index + 1])
        legs = tuple(leg.with_devices(rename) for leg in self.legs)
        return type(self)(self.level, self.chunk_size, tuple(options), legs)

    def describe(self) -> str:
        data = ", ".join(leg.data or "a missing device" for leg in self.legs)
        chunks = f" in chunks of {self.chunk_size} sectors" if self.chunk_size else ""
        return f"is a {self.level} array{chunks} of {data}"
