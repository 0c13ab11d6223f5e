"""The status of targets that say little: delay, log-writes, dust, verity, integrity, vdo, zoned.

Forms: the *_status functions of drivers/md/dm-delay.c, dm-log-writes.c, dm-dust.c,
dm-verity-target.c, dm-integrity.c, dm-zoned-target.c and dm-vdo/dm-vdo-target.c, in 6.1 and 6.12.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from dmcopy.status.base import Status, register
from dmcopy.table.record import FieldKind, Ratio, Spec, device_field, number_field, word_field
from dmcopy.table.words import TableError, Words


@register
@dataclass(frozen=True, slots=True)
class DelayStatus(Status):
    """How many reads, writes and flushes wait at the moment."""

    name: ClassVar[str] = "delay"

    reads: int = number_field()
    writes: int = number_field()
    flushes: int = number_field()


@register
@dataclass(frozen=True, slots=True)
class LogWritesStatus(Status):
    """Entries logged, the highest sector of the log in use, and `logging_disabled` if it is."""

    name: ClassVar[str] = "log-writes"

    entries: int = number_field()
    sector: int = number_field()
    disabled: str | None = word_field(choices=("logging_disabled",), optional=True)

    @property
    def trouble(self) -> str:
        """Whether logging has stopped: the data still flows."""
        return "logging stopped: the log is full or failed" if self.disabled else ""


@register
@dataclass(frozen=True, slots=True)
class DustStatus(Status):
    """`<device> <bypass|fail_read_on_bad_block> [<quiet|verbose>]`."""

    name: ClassVar[str] = "dust"

    device: str = device_field()
    mode: str = word_field()
    logging: str | None = word_field(optional=True)


@register
@dataclass(frozen=True, slots=True)
class VerityStatus(Status):
    """`V`: every check so far was good; `C`: one was not."""

    name: ClassVar[str] = "verity"

    state: str = word_field()

    @property
    def trouble(self) -> str:
        """Whether corruption was found."""
        return "corruption was found" if self.state == "C" else ""


@register
@dataclass(frozen=True, slots=True)
class IntegrityStatus(Status):
    """Mismatches, sectors for the user, and where recalculation is (None: `-`, not running)."""

    name: ClassVar[str] = "integrity"

    mismatches: int = number_field()
    sectors: int = number_field()
    recalculating: int | None = number_field(dash=True)

    @property
    def trouble(self) -> str:
        """Whether checksums did not match."""
        return f"{self.mismatches} checksums did not match" if self.mismatches else ""


@register
@dataclass(frozen=True, slots=True)
class VdoStatus(Status):
    """`<device> <mode> <recovering|-> <index> <compression> <used> <blocks>` in 4 KiB blocks."""

    name: ClassVar[str] = "vdo"

    device: str = device_field()
    mode: str = word_field()
    recovery: str | None = word_field(dash=True)
    index: str = word_field()
    compression: str = word_field()
    used: int = number_field()
    blocks: int = number_field()

    @property
    def trouble(self) -> str:
        """Whether the volume is read-only or repairing itself."""
        return "" if self.mode == "normal" else f"the volume is {self.mode}"


@register
@dataclass(frozen=True, slots=True)
class ZonedStatus(Status):
    """`<n> zones <unmapped>/<all> <kind>...`: kinds are cache, random and sequential."""

    name: ClassVar[str] = "zoned"

    zones: int
    kinds: tuple[tuple[Ratio, str], ...]

    @classmethod
    def take(cls, words: Words) -> Self:
        zones = words.number("zones")
        if words.word("zones") != "zones":
            raise TableError(cls.name, "zones", zones, "must be followed by the word zones")
        kinds = []
        while len(words):
            kinds.append((Spec(FieldKind.RATIO).take(words, "unmapped zones"), words.word("kind")))
        return cls(zones, tuple(kinds))

    def words(self) -> list[str]:
        return [str(self.zones), "zones", *(str(part) for kind in self.kinds for part in kind)]
