"""crypt, verity and integrity.

Rules: drivers/md/dm-crypt.c, dm-verity-target.c, dm-verity-fec.h and dm-integrity.c, read in 6.1
and 6.12.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

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

CRYPT_FEATURES = {
    "allow_discards": 0,
    "same_cpu_crypt": 0,
    "high_priority": 0,
    "submit_from_crypt_cpus": 0,
    "no_read_workqueue": 0,
    "no_write_workqueue": 0,
    "integrity:": 0,
    "sector_size:": 0,
    "iv_large_sectors": 0,
    "integrity_key_size:": 0,
}
VERITY_FEATURES = {
    "ignore_corruption": 0,
    "restart_on_corruption": 0,
    "panic_on_corruption": 0,
    "restart_on_error": 0,
    "panic_on_error": 0,
    "ignore_zero_blocks": 0,
    "check_at_most_once": 0,
    "try_verify_in_tasklet": 0,
    "use_fec_from_device": 1,
    "fec_blocks": 1,
    "fec_start": 1,
    "fec_roots": 1,
    "root_hash_sig_key_desc": 1,
}
INTEGRITY_OPTIONS = dict.fromkeys(
    [
        "meta_device:", "block_size:", "recalculate", "reset_recalculate", "allow_discards",
        "journal_sectors:", "interleave_sectors:", "buffer_sectors:", "journal_watermark:",
        "commit_time:", "sectors_per_bit:", "bitmap_flush_interval:", "fix_padding",
        "fix_hmac", "legacy_recalculate", "internal_hash:", "journal_crypt:", "journal_mac:",
    ],
    0,
)  # fmt: skip
_KEY = re.compile(r"(?:[0-9a-fA-F]{2})+|:\d+:(?:logon|user|encrypted|trusted):.+|-")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+")


@register
@dataclass(frozen=True, slots=True)
class Crypt(Target):
    """`crypt <cipher> <key> <iv_offset> <device> <offset> [<#features> <feature>...]`.

    `key`: hexadecimal, `:size:type:description` for one in the kernel's keyring, or `-` for none.
    `sector_size:` takes 512 to 4096 bytes, a power of two that divides the length. The kernel
    prints a key as zeroes unless asked to show it.
    """

    name: ClassVar[str] = "crypt"

    cipher: str = word_field()
    key: str = word_field()
    iv_offset: int = number_field()
    device: str = device_field()
    offset: int = number_field()
    features: tuple[str, ...] | None = group_field(10, known=CRYPT_FEATURES, optional=True)

    def _check(self, length: int) -> None:
        if not _KEY.fullmatch(self.key):
            # The value is a secret: it is not repeated.
            rule = "must be pairs of hexadecimal digits, :size:type:description, or -"
            raise self._wrong("key", None, rule)
        for feature in self.features or ():
            option, colon, value = feature.partition(":")
            if colon and option.lower() == "sector_size":
                self._check_sector_size(value, length)

    def _check_sector_size(self, text: str, length: int) -> None:
        size = Words(self.name, ()).as_number("sector_size", text)
        if not 512 <= size <= 4096 or size & (size - 1):
            raise self._wrong("sector_size", size, "must be 512, 1024, 2048 or 4096")
        if length % (size >> 9):
            raise self._wrong("sector_size", size, f"must divide the length, {length} sectors")

    def describe(self) -> str:
        return f"is {self.device} from sector {self.offset} on, encrypted with {self.cipher}"


@register
@dataclass(frozen=True, slots=True)
class Verity(Target):
    """`verity <version> <data> <hash> <data_block> <hash_block> <data_blocks> <hash_start> ...`.

    Then `<algorithm> <digest> <salt> [<#features> <feature>...]`. Block sizes are in bytes, counts
    in blocks; the table must be read-only.
    """

    name: ClassVar[str] = "verity"

    version: int = number_field(0, 1)
    data_device: str = device_field()
    hash_device: str = device_field()
    data_block_size: int = number_field(512, 4096, power=True)
    hash_block_size: int = number_field(512, (1 << 31) - 1, power=True)
    data_blocks: int = number_field()
    hash_start: int = number_field()
    algorithm: str = word_field()
    digest: str = word_field()
    salt: str = word_field()
    features: tuple[str, ...] | None = group_field(18, known=VERITY_FEATURES, optional=True)

    def _check(self, length: int) -> None:
        if not _HEX.fullmatch(self.digest):
            raise self._wrong("digest", self.digest, "must be pairs of hexadecimal digits")
        if self.salt != "-" and not _HEX.fullmatch(self.salt):
            raise self._wrong("salt", self.salt, "must be pairs of hexadecimal digits, or -")
        if length > self.data_blocks * (self.data_block_size >> 9):
            rule = f"of {self.data_block_size} bytes are less than the length, {length} sectors"
            raise self._wrong("data_blocks", self.data_blocks, rule)

    def with_devices(self, rename: Callable[[str], str]) -> Self:
        """Return the same value with every device renamed, the error-correction device too."""
        value = Target.with_devices(self, rename)
        features = list(value.features or ())
        for index, feature in enumerate(features[:-1]):
            if feature.lower() == "use_fec_from_device":
                features[index + 1] = rename(features[index + 1])
        return dataclasses.replace(value, features=tuple(features)) if features else value

    def describe(self) -> str:
        return (
            f"is {self.data_device}, read-only, each block checked against the {self.algorithm} "
            f"tree on {self.hash_device}"
        )


@register
@dataclass(frozen=True, slots=True)
class Integrity(Target):
    """`integrity <device> <offset> <tag_size|-> <mode> <#options> <option>...`.

    `mode`: J journal, B bitmap, D direct, R recovery, and from 6.12 on I inline. `tag_size` in
    bytes, None to take the hash's own. The kernel echoes defaults that it filled in as options.
    """

    name: ClassVar[str] = "integrity"

    device: str = device_field()
    offset: int = number_field()
    tag_size: int | None = number_field(1, MAX32, dash=True)
    mode: str = word_field(choices=("J", "B", "D", "R", "I"))
    options: tuple[str, ...] = group_field(18, known=INTEGRITY_OPTIONS)

    def _check(self, length: int) -> None:
        del length
        hashed = any(option.startswith("internal_hash:") for option in self.options)
        if self.tag_size is None and not hashed:
            raise self._wrong("tag_size", "-", "needs an option internal_hash: to take it from")
        for (option,) in each_feature(self.name, self.options, INTEGRITY_OPTIONS):
            if option.startswith("block_size:"):
                size = Words(self.name, ()).as_number("block_size", option.partition(":")[2])
                if not 512 <= size <= 4096 or size & (size - 1):
                    raise self._wrong("block_size", size, "must be 512, 1024, 2048 or 4096")

    def with_devices(self, rename: Callable[[str], str]) -> Self:
        """Return the same value with every device renamed, the metadata device too."""
        key = "meta_device:"
        options = tuple(
            key + rename(option.removeprefix(key)) if option.startswith(key) else option
            for option in self.options
        )
        return dataclasses.replace(Target.with_devices(self, rename), options=options)

    def describe(self) -> str:
        return f"is {self.device} from sector {self.offset} on, with a checksum for every block"
