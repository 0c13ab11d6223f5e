"""flakey: a device that is bad now and then (drivers/md/dm-flakey.c, 6.12).

What 6.1 does not have is here as in 6.12: error_reads, random_read_corrupt, random_write_corrupt,
and corrupt_bio_byte for reads, which does nothing on 6.1 (measured).
"""

from __future__ import annotations

import dataclasses
import random
from typing import ClassVar, NamedTuple

from dmcopy import table as lines
from dmcopy.io.request import Memory, Op, cut
from dmcopy.table import TableLine
from dmcopy.table.faults import FEATURES, PROBABILITY
from dmcopy.table.record import each_feature
from dmcopy.targets.base import (
    DONE,
    KILL,
    REMAPPED,
    Bio,
    Host,
    Map,
    Target,
    TargetError,
    register,
)
from dmcopy.units import PAGE_SIZE

REQ_FUA = 1 << 17
"""The only flag that bios have here; a write also has bit 0 (include/linux/blk_types.h)."""


class _Byte(NamedTuple):
    """The words of corrupt_bio_byte."""

    place: int
    op: Op
    value: int
    flags: int


@register
class Flakey(Target):
    """`flakey <device> <offset> <up> <down> [<#features> <feature>...]`.

    The seconds count from the load of the table on. In the bad time reads and writes fail, get
    dropped or corrupted, as the features say; without any, both fail. A write is corrupted in a
    copy. What is random comes from a generator that the line seeds, so that a run can be repeated.
    """

    value: lines.Flakey
    name: ClassVar[str] = "flakey"
    version: ClassVar = (1, 5, 0)
    flush_bios = 1
    discard_bios = 1
    wants_end_io = True

    def __init__(self, line: TableLine, host: Host) -> None:
        super().__init__(line, host)
        self._started = host.reactor.time()
        features = [
            feature
            for feature in each_feature(self.name, self.value.features or (), FEATURES)
            if not (feature[0].startswith("random_") and int(feature[1]) == 0)
        ]
        words = tuple(word for feature in features for word in feature)
        self.value = dataclasses.replace(self.value, features=words)
        found = {feature[0]: feature[1:] for feature in features}
        for name in found:
            if [feature[0] for feature in features].count(name) > 1:
                raise TargetError(f"Feature {name} duplicated")
        self._byte = _parse_byte(found.get("corrupt_bio_byte"))
        self._probability = {
            Op.READ: int(found.get("random_read_corrupt", ("0",))[0]),
            Op.WRITE: int(found.get("random_write_corrupt", ("0",))[0]),
        }
        self._error_reads = "error_reads" in found or not found
        self._drop_writes = "drop_writes" in found
        self._error_writes = "error_writes" in found or not found
        self._check()
        self._random = random.Random(str(line))
        self._device = host.open(self.value.device)
        self._shift = self.value.offset - self.begin
        host.use(self._device, self.value.offset, self.length)

    @property
    def is_down(self) -> bool:
        """Whether this is a bad second."""
        seconds = int(self.host.reactor.time() - self._started)
        up: int = self.value.up
        down: int = self.value.down
        return seconds % (up + down) >= up

    def map(self, bio: Bio) -> Map:
        """Move the bio to the device below, if nothing happens to it."""
        if self.is_down:
            if bio.op == Op.READ:
                if self._error_reads:
                    return KILL
                bio.data = "corrupt"  # perhaps, once there is something to corrupt
            elif self._drop_writes:
                return DONE
            elif self._error_writes:
                return KILL
            elif bio.op == Op.WRITE:
                self._corrupt_write(bio)
        bio.device = self._device
        if bio.op != Op.FLUSH:
            bio.sector += self._shift
        return REMAPPED

    def end_io(self, bio: Bio) -> bool:
        """Corrupt what was read in the bad time; give back the copy of a corrupted write."""
        if bio.op == Op.READ:
            if bio.data and not bio.error:
                _corrupt(bio, self._changes(bio))
        elif bio.data:
            bio.data.close()
        return True

    def _corrupt_write(self, bio: Bio) -> None:
        changes = self._changes(bio)
        if not changes:
            return
        assert bio.memory is not None
        copy = Memory(-(-bio.bytes // PAGE_SIZE))
        copy.view[: bio.bytes] = bio.memory.read(bio.extents)
        bio.data = bio.memory = copy
        bio.extents = [(0, bio.bytes)]
        _corrupt(bio, changes)

    def _changes(self, bio: Bio) -> list[tuple[int, int]]:
        """Return which bytes of the bio change, to which values."""
        changes = []
        byte = self._byte
        if byte and byte.op == bio.op and _flags(bio) & byte.flags == byte.flags:
            changes.append((byte.place, byte.value))
        probability = self._probability[bio.op]
        if probability and self._random.randrange(PROBABILITY) < probability:
            changes.append((self._random.randrange(bio.bytes), self._random.randrange(256)))
        return changes

    def _check(self) -> None:
        """Refuse what excludes each other (parse_features)."""
        for name, is_set, op in (
            ("drop_writes", self._drop_writes, Op.WRITE),
            ("error_writes", self._error_writes, Op.WRITE),
            ("error_reads", self._error_reads, Op.READ),
        ):
            has_byte = self._byte is not None and self._byte.op == op
            if is_set and (self._probability[op] or has_byte):
                raise TargetError(
                    f"{name} is incompatible with random_{op.name.lower()}_corrupt or "
                    f"corrupt_bio_byte with the {op.name} flag set"
                )


def _parse_byte(words: tuple[str, ...] | None) -> _Byte | None:
    if words is None:
        return None
    place, direction, value, flags = words
    op = Op.WRITE if direction.lower() == "w" else Op.READ
    return _Byte(int(place) - 1, op, int(value), int(flags))


def _flags(bio: Bio) -> int:
    return (bio.op == Op.WRITE) | (REQ_FUA if bio.fua else 0)


def _corrupt(bio: Bio, changes: list[tuple[int, int]]) -> None:
    """Change bytes in the bio's memory; one that the bio is too short for is left out."""
    assert bio.memory is not None
    for place, value in changes:
        for start, _ in cut(bio.extents, place, 1):
            bio.memory.view[start] = value
