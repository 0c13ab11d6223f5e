"""Targets that only move sectors about: linear, striped, unstriped, switch; zero, error and ebs.

Rules: drivers/md/dm-linear.c, dm-stripe.c, dm-unstripe.c, dm-switch.c, dm-zero.c, dm-target.c and
dm-ebs-target.c, read in 6.1 and 6.12.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from dmcopy.table.record import MAX32, device_field, number_field
from dmcopy.table.target import Leg, Target, check_legs, leg_words, register, take_legs
from dmcopy.table.words import Words


@register
@dataclass(frozen=True, slots=True)
class Linear(Target):
    """`linear <device> <offset>`: the same sectors of another device, from `offset` on."""

    name: ClassVar[str] = "linear"

    device: str = device_field()
    offset: int = number_field()

    def describe(self) -> str:
        return f"is {self.device} from sector {self.offset} on"


@register
@dataclass(frozen=True, slots=True)
class Striped(Target):
    """`striped <#stripes> <chunk_size> [<device> <offset>]...`: chunks of sectors in turn.

    The length must be a multiple of stripes times chunk_size (stripe_ctr in dm-stripe.c).
    """

    name: ClassVar[str] = "striped"

    chunk_size: int = number_field(1, MAX32)
    legs: tuple[Leg, ...] = ()

    @classmethod
    def take(cls, words: Words) -> Self:
        count = words.number("number of stripes")
        return cls(words.number("chunk_size"), take_legs(words, count, "stripes"))

    def words(self) -> list[str]:
        return [str(len(self.legs)), str(self.chunk_size), *leg_words(self.legs)]

    def _check(self, length: int) -> None:
        if not self.legs:
            raise self._wrong("number of stripes", 0, "must be at least 1")
        check_legs(self, self.legs)
        if length % len(self.legs) or length // len(self.legs) % self.chunk_size:
            rule = f"times {len(self.legs)} stripes must divide the length, {length} sectors"
            raise self._wrong("chunk_size", self.chunk_size, rule)

    def describe(self) -> str:
        legs = ", ".join(map(str, self.legs))
        return f"goes in chunks of {self.chunk_size} sectors to {legs} in turn"


@register
@dataclass(frozen=True, slots=True)
class Unstriped(Target):
    """`unstriped <#stripes> <chunk_size> <stripe> <device> <offset>`: one stripe of the device.

    The length must be a multiple of chunk_size (unstripe_ctr in dm-unstripe.c). The kernel lets
    stripe equal the number of stripes, which maps past the end; here that is refused.
    """

    name: ClassVar[str] = "unstriped"

    stripes: int = number_field(1, MAX32)
    chunk_size: int = number_field(1, MAX32)
    stripe: int = number_field(0, MAX32)
    device: str = device_field()
    offset: int = number_field()

    def _check(self, length: int) -> None:
        if self.stripe >= self.stripes:
            raise self._wrong("stripe", self.stripe, f"must be from 0 to {self.stripes - 1}")
        if length % self.chunk_size:
            rule = f"must divide the length, {length} sectors"
            raise self._wrong("chunk_size", self.chunk_size, rule)

    def describe(self) -> str:
        return (
            f"is stripe {self.stripe} of the {self.stripes} that {self.device} is made of, "
            f"in chunks of {self.chunk_size} sectors"
        )


@register
@dataclass(frozen=True, slots=True)
class Switch(Target):
    """`switch <#paths> <region_size> <#options> [<device> <offset>]...`: a path for each region.

    There are no options yet: the count must be 0 (switch_ctr in dm-switch.c).
    """

    name: ClassVar[str] = "switch"

    region_size: int = number_field(1, MAX32)
    legs: tuple[Leg, ...] = ()
    options: tuple[str, ...] = ()

    @classmethod
    def take(cls, words: Words) -> Self:
        count = words.number("number of paths")
        size = words.number("region_size")
        options = words.group("options")
        return cls(size, take_legs(words, count, "paths"), options)

    def words(self) -> list[str]:
        head = [str(len(self.legs)), str(self.region_size), str(len(self.options)), *self.options]
        return head + leg_words(self.legs)

    def _check(self, length: int) -> None:
        del length
        if self.options:
            raise self._wrong("number of options", len(self.options), "must be 0")
        if not self.legs:
            raise self._wrong("number of paths", 0, "must be at least 1")
        check_legs(self, self.legs)

    def describe(self) -> str:
        legs = ", ".join(map(str, self.legs))
        return f"goes in regions of {self.region_size} sectors to one of {legs}, as messages say"


@register
@dataclass(frozen=True, slots=True)
class Zero(Target):
    """`zero`: reads give zeroes, writes are dropped."""

    name: ClassVar[str] = "zero"

    def describe(self) -> str:
        return "reads as zeroes and drops writes"


@register
@dataclass(frozen=True, slots=True)
class Error(Target):
    """`error [<device> <offset>]`: every read and write fails with EIO.

    A device lends only its limits, from target version 1.7 on (kernel 6.12); earlier ones ignore
    the words. The kernel echoes no words (io_err_ctr in dm-target.c).
    """

    name: ClassVar[str] = "error"

    limits: Leg | None = None

    @classmethod
    def take(cls, words: Words) -> Self:
        return cls(*take_legs(words, 1, "devices")) if len(words) else cls()

    def words(self) -> list[str]:
        return leg_words((self.limits,)) if self.limits else []

    def _check(self, length: int) -> None:
        del length
        if self.limits is not None:
            check_legs(self, (self.limits,))

    def canonical(self) -> Self:
        """Return the value as the kernel would echo it: without the device whose limits it has."""
        return type(self)()

    def describe(self) -> str:
        return "fails every read and write with EIO"


@register
@dataclass(frozen=True, slots=True)
class Ebs(Target):
    """`ebs <device> <offset> <emulated> [<underlying>]`: other logical blocks, sizes in sectors.

    Both sizes are powers of two; `emulated` is at most a page, 8 sectors, and `offset` is less than
    the length (ebs_ctr in dm-ebs-target.c).
    """

    name: ClassVar[str] = "ebs"

    device: str = device_field()
    offset: int = number_field()
    emulated: int = number_field(1, 8, power=True)
    underlying: int | None = number_field(1, 32768, power=True, optional=True)

    def _check(self, length: int) -> None:
        if self.offset >= length:
            raise self._wrong("offset", self.offset, f"must be less than the length, {length}")

    def describe(self) -> str:
        return f"is {self.device} from sector {self.offset}, in blocks of {self.emulated} sectors"
