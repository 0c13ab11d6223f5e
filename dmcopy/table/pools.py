"""Targets with a metadata device: thin-pool, thin, cache, writecache, era, clone.

Rules: drivers/md/dm-thin.c, dm-cache-target.c, dm-writecache.c, dm-era-target.c and
dm-clone-target.c, read in 6.1 and 6.12.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from dmcopy.table.record import (
    MAX32,
    device_field,
    each_feature,
    group_field,
    number_field,
    word_field,
)
from dmcopy.table.target import Target, register
from dmcopy.table.words import Words

MAX_BLOCK_SECTORS = 1 << 21  # 1 GiB
MAX_THIN_ID = (1 << 24) - 1
POOL_FEATURES = {
    "skip_block_zeroing": 0,
    "ignore_discard": 0,
    "no_discard_passdown": 0,
    "read_only": 0,
    "error_if_no_space": 0,
}
CACHE_MODES = ("writeback", "writethrough", "passthrough")
CACHE_FEATURES = {"metadata2": 0, **dict.fromkeys(CACHE_MODES, 0), "no_discard_passdown": 0}
WRITECACHE_OPTIONS = {
    "start_sector": 1,
    "high_watermark": 1,
    "low_watermark": 1,
    "writeback_jobs": 1,
    "autocommit_blocks": 1,
    "autocommit_time": 1,
    "max_age": 1,
    "cleaner": 0,
    "fua": 0,
    "nofua": 0,
    "metadata_only": 0,
    "pause_writeback": 1,
}
_WRITECACHE_LIMITS = {
    "high_watermark": 100,
    "low_watermark": 100,
    "autocommit_time": 3_600_000,
    "max_age": 86_400_000,
    "pause_writeback": 60_000,
}
CLONE_FEATURES = {"no_hydration": 0, "no_discard_passdown": 0}
CLONE_CORE = {"hydration_threshold": 1, "hydration_batch_size": 1}


@register
@dataclass(frozen=True, slots=True)
class ThinPool(Target):
    """`thin-pool <metadata> <data> <block_size> <low_water> [<#features> <feature>...]`.

    `block_size` in sectors: a multiple of 128 (64 KiB) up to 1 GiB. `low_water` in blocks: below
    it, an event. Must be the only line of its table.
    """

    name: ClassVar[str] = "thin-pool"
    singleton: ClassVar[bool] = True

    metadata: str = device_field()
    data: str = device_field()
    block_size: int = number_field(128, MAX_BLOCK_SECTORS, multiple=128)
    low_water: int = number_field()
    features: tuple[str, ...] | None = group_field(4, known=POOL_FEATURES, optional=True)

    def _check(self, length: int) -> None:
        del length
        if self.metadata == self.data:
            raise self._wrong("data", self.data, "must be another device than the metadata")

    def describe(self) -> str:
        return (
            f"is a pool for thin devices: blocks of {self.block_size} sectors on {self.data}, "
            f"mapped by {self.metadata}"
        )


@register
@dataclass(frozen=True, slots=True)
class Thin(Target):
    """`thin <pool> <id> [<origin>]`: a thin device of a pool; `id` is a 24-bit number.

    `origin` is an external, read-only device under it.
    """

    name: ClassVar[str] = "thin"

    pool: str = device_field()
    id: int = number_field(0, MAX_THIN_ID)
    origin: str | None = device_field(optional=True)

    def _check(self, length: int) -> None:
        del length
        if self.origin == self.pool:
            raise self._wrong("origin", self.origin, "must be another device than the pool")

    def describe(self) -> str:
        over = f" over {self.origin}" if self.origin else ""
        return f"is thin device {self.id} of pool {self.pool}{over}"


@register
@dataclass(frozen=True, slots=True)
class Cache(Target):
    """`cache <metadata> <cache> <origin> <block_size> <#features> ... <policy> <#words> ...`.

    `block_size` in sectors: a multiple of 64 (32 KiB) up to 1 GiB. At most one of writeback,
    writethrough and passthrough. The policy's words come in pairs of key and value.
    """

    name: ClassVar[str] = "cache"

    metadata: str = device_field()
    cache: str = device_field()
    origin: str = device_field()
    block_size: int = number_field(64, MAX_BLOCK_SECTORS, multiple=64)
    features: tuple[str, ...] = group_field(3, known=CACHE_FEATURES)
    policy: str = word_field()
    policy_words: tuple[str, ...] = group_field(1024)

    def _check(self, length: int) -> None:
        del length
        modes = [one for one in self.features if one.lower() in CACHE_MODES]
        if len(modes) > 1:
            raise self._wrong("feature", modes[1], f"excludes {modes[0]}")
        if len(self.policy_words) % 2:
            rule = "must be even: pairs of key and value"
            raise self._wrong("number of policy words", len(self.policy_words), rule)

    def describe(self) -> str:
        mode = next((one for one in self.features if one.lower() in CACHE_MODES), "writeback")
        return (
            f"is {self.origin} with its hot blocks of {self.block_size} sectors on {self.cache} "
            f"({mode}, policy {self.policy}), mapped by {self.metadata}"
        )


@register
@dataclass(frozen=True, slots=True)
class Writecache(Target):
    """`writecache <p|s> <origin> <cache> <block_size> <#options> <option>...`: a cache for writes.

    `kind`: p for persistent memory, s for an SSD. `block_size` in bytes: a power of two from 512 to
    4096.
    """

    name: ClassVar[str] = "writecache"

    kind: str = word_field(choices=("p", "s", "P", "S"))
    origin: str = device_field()
    cache: str = device_field()
    block_size: int = number_field(512, 4096, power=True)
    options: tuple[str, ...] = group_field(18, known=WRITECACHE_OPTIONS)

    def _check(self, length: int) -> None:
        del length
        pmem = self.kind.lower() == "p"
        for option in each_feature(self.name, self.options, WRITECACHE_OPTIONS):
            if option[0] in ("fua", "nofua") and not pmem:
                raise self._wrong("option", option[0], "is for persistent memory (p) only")
            if option[0] == "pause_writeback" and pmem:
                raise self._wrong("option", option[0], "is for an SSD (s) only")
            _check_values(self, option, _WRITECACHE_LIMITS)

    def describe(self) -> str:
        return (
            f"is {self.origin}; writes go to {self.cache} first, in {self.block_size}-byte blocks"
        )


@register
@dataclass(frozen=True, slots=True)
class Era(Target):
    """`era <metadata> <origin> <block_size>`: notes which blocks are written in which era.

    `block_size` in sectors: a multiple of 8.
    """

    name: ClassVar[str] = "era"

    metadata: str = device_field()
    origin: str = device_field()
    block_size: int = number_field(8, MAX32, multiple=8)

    def describe(self) -> str:
        return (
            f"is {self.origin}; {self.metadata} notes which blocks of {self.block_size} sectors "
            "are written in which era"
        )


@register
@dataclass(frozen=True, slots=True)
class Clone(Target):
    """`clone <metadata> <dest> <source> <region_size> [<#features> ... [<#core words> ...]]`.

    `region_size` in sectors: a power of two from 8 to 2097152. The core words come in pairs. The
    kernel echoes features and core words as they were given.
    """

    name: ClassVar[str] = "clone"

    metadata: str = device_field()
    dest: str = device_field()
    source: str = device_field()
    region_size: int = number_field(8, MAX_BLOCK_SECTORS, power=True)
    features: tuple[str, ...] | None = group_field(2, known=CLONE_FEATURES, optional=True)
    core: tuple[str, ...] | None = group_field(4, known=CLONE_CORE, optional=True)

    def _check(self, length: int) -> None:
        if self.core is not None and self.features is None:
            raise self._wrong("core words", None, "need the count of features before them")
        if -(-length // self.region_size) > 1 << 31:
            rule = "makes more than 2147483648 regions"
            raise self._wrong("region_size", self.region_size, rule)
        for pair in each_feature(self.name, self.core or (), CLONE_CORE):
            _check_values(self, pair, {})

    def describe(self) -> str:
        return (
            f"is a copy of {self.source} being made on {self.dest} in regions of "
            f"{self.region_size} sectors, tracked by {self.metadata}"
        )


def _check_values(target: Target, option: tuple[str, ...], limits: Mapping[str, int]) -> None:
    cursor = Words(target.name, option[1:])
    limit = limits.get(option[0], (1 << 64) - 1)
    for _ in option[1:]:
        value = cursor.number(option[0])
        if value > limit:
            raise target._wrong(option[0], value, f"must be from 0 to {limit}")
