# ruff: noqa: RUF009 (what stands after = is always dataclasses.field, by way of a helper)
"""The status of targets with a metadata device: thin-pool, thin, cache, era, clone, writecache.

Forms: drivers/md/dm-thin.c, dm-cache-target.c, dm-era-target.c, dm-clone-target.c and
dm-writecache.c, in 6.1 and 6.12. `Fail` and `Error` alone are `dmcopy.status.FailedStatus`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dmcopy.status.base import Status, register
from dmcopy.table.record import Ratio, group_field, number_field, ratio_field, word_field

_NEEDS_CHECK = "the metadata needs a check: deactivate the device and repair it"
_READ_ONLY = "the metadata is read-only after an error"


@register
@dataclass(frozen=True, slots=True)
class ThinPoolStatus(Status):
    """`<transaction> <metadata> <data> <held root> <mode> <discard> <no space> <check> <low mark>`.

    `metadata` and `data` count blocks used of all. `mode`: rw, ro or out_of_data_space.
    """

    name: ClassVar[str] = "thin-pool"

    transaction: int = number_field()
    metadata: Ratio = ratio_field()
    data: Ratio = ratio_field()
    held_root: int | None = number_field(dash=True)
    mode: str = word_field()
    discard: str = word_field()
    no_space: str = word_field()
    needs_check: str | None = word_field(dash=True)
    low_mark: int | None = number_field(optional=True)

    @property
    def trouble(self) -> str:
        """Whether the pool is full, read-only or in need of a check."""
        if self.needs_check:
            return _NEEDS_CHECK
        return {
            "ro": _READ_ONLY,
            "out_of_data_space": "the pool has no free data blocks: extend its data device",
        }.get(self.mode, "")


@register
@dataclass(frozen=True, slots=True)
class ThinStatus(Status):
    """`<mapped> <highest>` in sectors; `highest` None (`-`) when nothing is mapped."""

    name: ClassVar[str] = "thin"

    mapped: int = number_field()
    highest: int | None = number_field(dash=True)


@register
@dataclass(frozen=True, slots=True)
class CacheStatus(Status):
    """How full the cache is, what hit and missed, and how it is set.

    `metadata` and `cached` count blocks used of all; `block_size` and `metadata_block` are sectors.
    """

    name: ClassVar[str] = "cache"

    metadata_block: int = number_field()
    metadata: Ratio = ratio_field()
    block_size: int = number_field()
    cached: Ratio = ratio_field()
    read_hits: int = number_field()
    read_misses: int = number_field()
    write_hits: int = number_field()
    write_misses: int = number_field()
    demotions: int = number_field()
    promotions: int = number_field()
    dirty: int = number_field()
    features: tuple[str, ...] = group_field()
    core: tuple[str, ...] = group_field()
    policy: str = word_field()
    policy_words: tuple[str, ...] = group_field()
    mode: str = word_field()
    needs_check: str | None = word_field(dash=True)

    @property
    def trouble(self) -> str:
        """Whether the metadata is read-only or in need of a check."""
        if self.needs_check:
            return _NEEDS_CHECK
        return _READ_ONLY if self.mode == "ro" else ""


@register
@dataclass(frozen=True, slots=True)
class EraStatus(Status):
    """`<metadata block> <metadata> <current era> <held root>`; block size in sectors."""

    name: ClassVar[str] = "era"

    metadata_block: int = number_field()
    metadata: Ratio = ratio_field()
    era: int = number_field()
    held_root: int | None = number_field(dash=True)


@register
@dataclass(frozen=True, slots=True)
class CloneStatus(Status):
    """How much of the source is copied: `hydrated` regions of all, `hydrating` at the moment."""

    name: ClassVar[str] = "clone"

    metadata_block: int = number_field()
    metadata: Ratio = ratio_field()
    region_size: int = number_field()
    hydrated: Ratio = ratio_field()
    hydrating: int = number_field()
    features: tuple[str, ...] = group_field()
    core: tuple[str, ...] = group_field()
    mode: str = word_field()

    @property
    def trouble(self) -> str:
        """Whether the metadata is read-only."""
        return _READ_ONLY if self.mode == "ro" else ""


@register
@dataclass(frozen=True, slots=True)
class WritecacheStatus(Status):
    """An error number, blocks, and counts of what happened; old kernels stop at `writeback`."""

    name: ClassVar[str] = "writecache"

    error: int = number_field()
    blocks: int = number_field()
    free: int = number_field()
    writeback: int = number_field()
    reads: int | None = number_field(optional=True)
    read_hits: int | None = number_field(optional=True)
    writes: int | None = number_field(optional=True)
    write_hits_uncommitted: int | None = number_field(optional=True)
    write_hits_committed: int | None = number_field(optional=True)
    writes_around: int | None = number_field(optional=True)
    writes_allocate: int | None = number_field(optional=True)
    writes_blocked: int | None = number_field(optional=True)
    flushes: int | None = number_field(optional=True)
    discards: int | None = number_field(optional=True)

    @property
    def trouble(self) -> str:
        return f"the cache failed with error {self.error}" if self.error else ""
