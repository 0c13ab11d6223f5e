"""Targets for whole devices of a special kind: zoned and vdo.

Rules: drivers/md/dm-zoned-target.c in 6.1 and 6.12, dm-vdo/dm-vdo-target.c in 6.12.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from dmcopy.table.record import MAX32, Record, device_field, number_field, word_field
from dmcopy.table.target import Target, register
from dmcopy.table.words import Words

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
        """Take the value's words off the front of `words`. Raises TableError."""
        members = [ZonedDevice(words.word("device"))]
        while len(words):
            members.append(ZonedDevice(words.word("device")))
        return cls(tuple(members))

    def words(self) -> list[str]:
        """Return the value as the words of a line."""
        return [member.device for member in self.members]

    def _check(self, length: int) -> None:
        del length
        if not self.members:
            raise self._wrong("device", None, "is missing")

    def describe(self) -> str:
        """Say in words what the line does."""
        return f"is an ordinary disk made of the zones of {', '.join(self.words())}"


@register
@dataclass(frozen=True, slots=True)
class Vdo(Target):
    """`vdo V4 <device> <blocks> <logical_block> <cache> <era> [<key> <value>]...`.

    `blocks`, `cache` and `era` count blocks of 4096 bytes; `logical_block` is 512 or 4096 bytes.
    Older forms than V4 keep their extra words in `options`, unchecked. The kernel echoes the line
    as it was given.
    """

    name: ClassVar[str] = "vdo"
    singleton: ClassVar[bool] = True

    version: str = word_field()
    device: str = device_field()
    blocks: int = number_field()
    logical_block: int = number_field()
    cache: int = number_field(0, MAX32)
    era: int = number_field(0, MAX32)
    options: tuple[str, ...] = ()

    @classmethod
    def take(cls, words: Words) -> Self:
        """Take the value's words off the front of `words`. Raises TableError."""
        head = (words.word("version"), words.word("device"), words.number("blocks"))
        sizes = (words.number("logical_block"), words.number("cache"), words.number("era"))
        return cls(*head, *sizes, words.take(len(words), "options"))

    def words(self) -> list[str]:
        """Return the value as the words of a line."""
        return [*Record.words(self), *self.options]

    def _check(self, length: int) -> None:
        if self.version != "V4":
            raise self._wrong("version", self.version, "must be V4, the form that is documented")
        if self.logical_block not in (512, 4096):
            raise self._wrong("logical_block", self.logical_block, "must be 512 or 4096")
        if length % 8:
            raise self._wrong("length", length, "must be a multiple of 8 sectors")
        if len(self.options) % 2:
            raise self._wrong("option", self.options[-1], "needs a value after it")
        threads = dict.fromkeys(("logical", "physical", "hash"), 0)
        for key, text in zip(self.options[::2], self.options[1::2], strict=True):
            self._check_option(key, text, threads)
        if len({bool(count) for count in threads.values()}) > 1:
            rule = "threads must all be 0 or all be more"
            raise self._wrong("logical, physical and hash", None, rule)

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
        """Say in words what the line does."""
        return f"is deduplicated and compressed onto {self.device}, {self.blocks} blocks of 4 KiB"
