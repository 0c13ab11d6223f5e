"""Pairs of numbers, millions of them: a dict while they are few, arrays when they are many.

A dict needs a hundred bytes for a pair: its entry, and an object for each number. From `SPILL`
pairs on they are in `BUCKETS` short arrays instead, by a hash, each old, new, old, new, …: that
takes 24 bytes for a pair, and looking one up some hundred nanoseconds more.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Final

SPILL: Final = 1 << 20
_BITS: Final = 20
_BUCKETS: Final = 1 << _BITS
_MIX: Final = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio: multiplied by it, numbers in any steps lie far apart."""
_SHIFT: Final = 64 - _BITS
_LAST: Final = _BUCKETS - 1


class Scattered:
    """A mapping of numbers of 64 bits. `get` is the dict's own while there is one."""

    __slots__ = ("_buckets", "_count", "_few", "get")

    def __init__(self) -> None:
        self._few: dict[int, int] = {}
        self._buckets: list[array[int] | None] = []
        self._count = 0
        self.get: Callable[[int], int | None] = self._few.get

    def __len__(self) -> int:
        return self._count + len(self._few)

    def __contains__(self, old: int) -> bool:
        return self.get(old) is not None

    def __iter__(self) -> Iterator[int]:
        return (old for old, _ in self.items())

    def __setitem__(self, old: int, new: int) -> None:
        if self._buckets:
            self._put(((old, new),))
        else:
            self._few[old] = new
            if len(self._few) > SPILL:
                self._spill()

    def update(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Put in many; of two for one number the last one holds."""
        if self._buckets:
            self._put(pairs)
            return
        self._few.update(pairs)
        if len(self._few) > SPILL:
            self._spill()

    def pop(self, old: int) -> int | None:
        """Take one out, and return what it was."""
        if not self._buckets:
            return self._few.pop(old, None)
        bucket = self._bucket(old)
        place = _place(bucket, old)
        if place < 0:
            return None
        assert bucket is not None
        new = bucket[place + 1]
        del bucket[place : place + 2]
        self._count -= 1
        return new

    def items(self) -> Iterator[tuple[int, int]]:
        """Yield all pairs, in no order."""
        yield from self._few.items()
        for bucket in self._buckets:
            if bucket:
                yield from zip(bucket[0::2], bucket[1::2], strict=True)

    def _spill(self) -> None:
        few, self._few = self._few, {}
        self._buckets = [None] * _BUCKETS
        self.get = self._find
        self._put(few.items())

    def _put(self, pairs: Iterable[tuple[int, int]]) -> None:
        buckets = self._buckets
        for old, new in pairs:
            number = old * _MIX >> _SHIFT & _LAST
            bucket = buckets[number]
            if bucket is None:
                buckets[number] = array("Q", (old, new))
            elif old not in bucket or (place := _place(bucket, old)) < 0:
                bucket.append(old)
                bucket.append(new)
            else:
                bucket[place + 1] = new
                continue
            self._count += 1

    def _bucket(self, old: int) -> array[int] | None:
        return self._buckets[old * _MIX >> _SHIFT & _LAST]

    def _find(self, old: int) -> int | None:
        bucket = self._buckets[old * _MIX >> _SHIFT & _LAST]
        place = _place(bucket, old)
        return bucket[place + 1] if bucket is not None and place >= 0 else None


def _place(bucket: array[int] | None, old: int) -> int:
    """Return where in its bucket a number is, or -1: at an odd place it is what another has."""
    place = -1
    try:
        while bucket is not None:
            place = bucket.index(old, place + 1)
            if not place & 1:
                return place
    except ValueError:
        pass
    return -1
