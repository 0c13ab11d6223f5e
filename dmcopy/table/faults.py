"""Targets that misbehave on purpose or keep a record: flakey, delay, dust, log-writes.

Rules: drivers/md/dm-flakey.c, dm-delay.c, dm-dust.c and dm-log-writes.c, read in 6.1 and 6.12.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

from dmcopy.table.record import MAX32, Record, device_field, each_feature, group_field, number_field
from dmcopy.table.target import Target, register
from dmcopy.table.words import Words

MAX_DUST_SECTORS = 2097152
PROBABILITY = 1_000_000_000
FEATURES = {
    "error_reads": 0,
    "drop_writes": 0,
    "error_writes": 0,
    "corrupt_bio_byte": 4,
    "random_read_corrupt": 1,
    "random_write_corrupt": 1,
}


@register
@dataclass(frozen=True, slots=True)
class Flakey(Target):
    """`flakey <device> <offset> <up> <down> [<#features> <feature>...]`: bad for `down` seconds.

    The device is good for `up` seconds from the load of the table on, then bad for `down`, and so
    on; `up` 0 is always bad. Features: error_reads, random_read_corrupt and random_write_corrupt
    (kernel 6.12, absent in 6.1), drop_writes, error_writes, corrupt_bio_byte. Without any, all I/O
    fails; write that as `()`, the count 0, since some kernels between 6.1 and 6.12 let a line
    without a count pass everything.
    """

    name: ClassVar[str] = "flakey"

    device: str = device_field()
    offset: int = number_field()
    up: int = number_field(0, MAX32)
    down: int = number_field(0, MAX32)
    features: tuple[str, ...] | None = group_field(11, known=FEATURES, optional=True)

    def _check(self, length: int) -> None:
        del length
        if not 0 < self.up + self.down <= MAX32:
            rule = f"and up, {self.up}, must add up to 1 to {MAX32} seconds"
            raise self._wrong("down", self.down, rule)
        found = list(each_feature(self.name, self.features or (), FEATURES))
        for name, *values in found:
            self._check_feature(name, values)
        names = [feature[0] for feature in found]
        for name in ("error_reads", "drop_writes", "error_writes"):
            if names.count(name) > 1:
                raise self._wrong("feature", name, "is there twice")
        self._check_conflicts(set(names), {f[2].lower() for f in found if len(f) == 5})

    def _check_feature(self, name: str, values: list[str]) -> None:
        cursor = Words(self.name, values)
        if name == "corrupt_bio_byte":
            self._range("corrupt_bio_byte: byte", cursor, 1, MAX32)
            direction = cursor.word("direction")
            if direction.lower() not in ("r", "w"):
                raise self._wrong("corrupt_bio_byte: direction", direction, "must be r or w")
            self._range("corrupt_bio_byte: value", cursor, 0, 255)
            self._range("corrupt_bio_byte: flags", cursor, 0, MAX32)
        elif values:
            self._range(name, cursor, 0, PROBABILITY)

    def _range(self, what: str, cursor: Words, low: int, high: int) -> None:
        value = cursor.number(what)
        if not low <= value <= high:
            raise self._wrong(what, value, f"must be from {low} to {high}")

    def _check_conflicts(self, names: set[str], corrupt: set[str]) -> None:
        # The table of parse_features; what is new in 6.12 is refused by 6.1 as unknown anyway.
        clashes = [("drop_writes", "error_writes")] if "error_writes" in names else []
        if "w" in corrupt:
            clashes += [(one, "corrupt_bio_byte w") for one in ("drop_writes", "error_writes")]
        for one, other in clashes:
            if one in names:
                raise self._wrong("feature", one, f"excludes {other}")

    def canonical(self) -> Self:
        """Return the value as a kernel would echo it; "everything fails" is the empty tuple.

        6.1 echoes that as the count 0, 6.12 as `2 error_reads error_writes` (measured).
        """
        found = each_feature(self.name, Target.canonical(self).features or (), FEATURES)
        words = (
            [*one[:2], one[2].lower(), *one[3:]] if one[0] == "corrupt_bio_byte" else one
            for one in found
        )
        value = dataclasses.replace(self, features=tuple(word for one in words for word in one))
        if set(value.features or ()) in (set(), {"error_reads", "error_writes"}):
            return dataclasses.replace(value, features=())
        return value

    def describe(self) -> str:
        names = [one[0] for one in each_feature(self.name, self.features or (), FEATURES)]
        bad = ", ".join(names) or "every read and write fails"
        return (
            f"is {self.device} from sector {self.offset} on, good for {self.up} s and then bad "
            f"for {self.down} s in turn ({bad})"
        )


@dataclass(frozen=True, slots=True)
class Delayed(Record):
    """A device, a start sector and a delay in milliseconds for one class of I/O."""

    name: ClassVar[str] = "delay"

    device: str = device_field()
    offset: int = number_field()
    milliseconds: int = number_field(0, MAX32)

    def __str__(self) -> str:
        return f"{self.device} at sector {self.offset} after {self.milliseconds} ms"


@register
@dataclass(frozen=True, slots=True)
class Delay(Target):
    """`delay <device> <offset> <ms> [<device> <offset> <ms> [<device> <offset> <ms>]]`.

    Exactly 3, 6 or 9 words: for all I/O; for reads, and for writes with flushes; for reads, writes
    and flushes. A suspend sends down everything that waits.
    """

    name: ClassVar[str] = "delay"

    read: Delayed
    write: Delayed | None = None
    flush: Delayed | None = None

    @classmethod
    def take(cls, words: Words) -> Self:
        found = [Delayed.take(words)]
        while len(words) and len(found) < 3:
            found.append(Delayed.take(words))
        return cls(*found)

    def words(self) -> list[str]:
        return [word for one in (self.read, self.write, self.flush) if one for word in one.words()]

    def _check(self, length: int) -> None:
        del length
        if self.flush and not self.write:
            raise self._wrong("flush", self.flush, "needs a delay for writes before it")
        for one in (self.read, self.write, self.flush):
            if one:
                one.check_words()

    def describe(self) -> str:
        if self.write is None:
            return f"goes to {self.read}"
        text = f"reads from {self.read} and writes to {self.write}"
        return f"{text}, flushes to {self.flush}" if self.flush else text


@register
@dataclass(frozen=True, slots=True)
class Dust(Target):
    """`dust <device> <offset> <block_size>`: reads of blocks on a list fail, once enabled.

    `block_size` is in bytes: a power of two from 512 to 1 GiB that is not longer than the line.
    Starts in bypass; messages fill the list and enable it.
    """

    name: ClassVar[str] = "dust"

    device: str = device_field()
    offset: int = number_field()
    block_size: int = number_field(512, MAX_DUST_SECTORS << 9, power=True)

    def _check(self, length: int) -> None:
        if self.block_size >> 9 > length:
            rule = f"bytes must not exceed the length, {length} sectors"
            raise self._wrong("block_size", self.block_size, rule)

    def describe(self) -> str:
        return (
            f"is {self.device} from sector {self.offset} on, with bad blocks of "
            f"{self.block_size} bytes once messages add and enable them"
        )


@register
@dataclass(frozen=True, slots=True)
class LogWrites(Target):
    """`log-writes <device> <log_device>`: every write is also logged, when it completes."""

    name: ClassVar[str] = "log-writes"

    device: str = device_field()
    log_device: str = device_field()

    def describe(self) -> str:
        return f"is {self.device}; every write is also logged on {self.log_device}"
