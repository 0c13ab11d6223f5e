"""Targets for whole devices of a special kind: zoned and vdo.

Rules: drivers/md/dm-zoned-target.c in 6.1 and 6.12, dm-vdo/dm-vdo-target.c in 6.12.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Self

from dmcopy.table.record import MAX32, Record, device_field, number_field, word_field
from dmcopy.table.target import Target, register
from dmcopy.table.words import TableError, Words

# Of a key's value: the least and the most (process_one_key_value_pair in dm-vdo-target.c).
VDO_OPTIONS = {
    "maxDiscard": (1, MAX32 // 4096),
    "ack": (0, 100),
    "bio": (1, 100),
    "bioRotationInterval": (1, 1024),
    "cpu": (1, 100),
    "hash": (0, 100),
    "logical": (0, 60),
    "physical": (0, 16),
    "deduplication": None,
    "compression": None,
}


# Of each form: how many words are there for options that no longer exist, before and after the two
# sizes of the cache (parse_device_config in dm-vdo-target.c).
VDO_SKIPPED = {"V0": (2, 3), "V1": (2, 3), "V2": (0, 3), "V3": (0, 1), "V4": (0, 0)}
_VERSION = re.compile(r"V\d+")


@dataclass(frozen=True, slots=True)
class ZonedDevice(Record):
    """One device of a zoned target."""

    device: str = device_field()


@register
@dataclass(frozen=True, slots=True)
class Zoned(Target):
    """`zoned <device>...`: a zoned device, with the cache device first if there are several."""

    name: ClassVar[str] = "zoned"

    members: tuple[ZonedDevice, ...]

    @classmethod
    def take(cls, words: Words) -> Self:
        members = [ZonedDevice(words.word("device"))]
        while len(words):
            members.append(ZonedDevice(words.word("device")))
        return cls(tuple(members))

    def words(self) -> list[str]:
        return [member.device for member in self.members]

    def _check(self, length: int) -> None:
        del length
        if not self.members:
            raise self._wrong("device", None, "is missing")

    def describe(self) -> str:
        return f"is an ordinary disk made of the zones of {', '.join(self.words())}"


@register
@dataclass(frozen=True, slots=True)
class Vdo(Target):
    """`vdo V4 <device> <blocks> <logical_block> <cache> <era> [<key> <value>]...`.

    `blocks`, `cache` and `era` count blocks of 4096 bytes; `logical_block` is 512 or 4096 bytes.
    Lines of older forms work too: those of V1 to V3 have words that the kernel skips, which are
    `skipped` here, and those of V0, which name no version, have no `blocks`. The options of V0 and
    V1 are one word, as in `cpu=2,ack=1`, or a lone dot. The kernel echoes the line as it was given.
    """

    name: ClassVar[str] = "vdo"
    singleton: ClassVar[bool] = True

    version: str = word_field()
    device: str = device_field()
    blocks: int | None = number_field(dash=True)
    logical_block: int = number_field()
    cache: int = number_field(0, MAX32)
    era: int = number_field(0, MAX32)
    options: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @classmethod
    def take(cls, words: Words) -> Self:
        version = "V0"
        if _VERSION.fullmatch(words.peek() or ""):
            version = words.word("version")
            if version == "V0" or version not in VDO_SKIPPED:
                raise TableError(cls.name, "version", version, "must be from V1 to V4")
        before, after = VDO_SKIPPED[version]
        device = words.word("device")
        blocks = None if version == "V0" else words.number("blocks")
        logical_block = words.number("logical_block")
        skipped = tuple(words.word("skipped word") for _ in range(before))
        cache, era = words.number("cache"), words.number("era")
        skipped += tuple(words.word("skipped word") for _ in range(after))
        options = words.take(len(words), "options")
        return cls(version, device, blocks, logical_block, cache, era, options, skipped)

    def words(self) -> list[str]:
        before = VDO_SKIPPED[self.version][0] if self.version in VDO_SKIPPED else 0
        return [
            *([] if self.version == "V0" else [self.version]),
            self.device,
            *([] if self.blocks is None else [str(self.blocks)]),
            str(self.logical_block),
            *self.skipped[:before],
            str(self.cache),
            str(self.era),
            *self.skipped[before:],
            *self.options,
        ]

    def _check(self, length: int) -> None:
        if self.version not in VDO_SKIPPED:
            raise self._wrong("version", self.version, "must be from V0 to V4")
        if (self.blocks is None) != (self.version == "V0"):
            raise self._wrong("blocks", self.blocks, "must be there in all forms but V0")
        if len(self.skipped) != sum(VDO_SKIPPED[self.version]):
            rule = f"must be {sum(VDO_SKIPPED[self.version])} in form {self.version}"
            raise self._wrong("number of skipped words", len(self.skipped), rule)
        if self.logical_block not in (512, 4096):
            raise self._wrong("logical_block", self.logical_block, "must be 512 or 4096")
        if length % 8:
            raise self._wrong("length", length, "must be a multiple of 8 sectors")
        threads = dict.fromkeys(("logical", "physical", "hash"), 0)
        for key, text in self._pairs():
            self._check_option(key, text, threads)
        if len({bool(count) for count in threads.values()}) > 1:
            rule = "threads must all be 0 or all be more"
            raise self._wrong("logical, physical and hash", None, rule)

    def _pairs(self) -> list[tuple[str, str]]:
        """Return the options as keys and values."""
        if self.version in ("V0", "V1"):
            if len(self.options) != 1:
                rule = f"must be one word in form {self.version}: a dot if there are none"
                raise self._wrong("threads", " ".join(self.options), rule)
            parts = [] if self.options == (".",) else self.options[0].split(",")
            pairs = [part.split("=") for part in parts]
            for part, pair in zip(parts, pairs, strict=True):
                if len(pair) != 2:
                    raise self._wrong("threads", part, "must be name=number")
            return [(key, text) for key, text in pairs]
        if len(self.options) % 2:
            raise self._wrong("option", self.options[-1], "needs a value after it")
        return list(zip(self.options[::2], self.options[1::2], strict=True))

    def _check_option(self, key: str, text: str, threads: dict[str, int]) -> None:
        # The kernel only logs a key that it does not know; that hides a typing mistake.
        if key not in VDO_OPTIONS:
            raise self._wrong("option", key, f"is unknown; known: {', '.join(VDO_OPTIONS)}")
        limits = VDO_OPTIONS[key]
        if limits is None:
            if text not in ("on", "off"):
                raise self._wrong(key, text, "must be on or off")
            return
        value = Words(self.name, ()).as_number(key, text)
        if not limits[0] <= value <= limits[1]:
            raise self._wrong(key, value, f"must be from {limits[0]} to {limits[1]}")
        if key in threads:
            threads[key] = value

    def describe(self) -> str:
        size = "" if self.blocks is None else f", {self.blocks} blocks of 4 KiB"
        return f"is deduplicated and compressed onto {self.device}{size}"
