"""Which chunk of the origin is where on the COW, in memory: made to hold millions.

Scattered exceptions are in a dict, and from a million on in arrays (`scattered`). Runs of
consecutive chunks of the origin are by blocks of 256 chunks, each an array with a place for every
chunk: 8 bytes for an exception instead of a hundred.
(The kernel, too, compresses runs, of up to 256; drivers/md/dm-exception-store.h.)

Measured with CPython 3.11 on two cores, 10 million exceptions, `extend` by areas of 256 and then
`get` in random order, where a dict.get in a loop takes 70 ns from the cache:

    origin chunks       load    memory of the process   get
    consecutive         1.3 s   108 MiB                 460 ns
    random of 2**40             345 MiB                 840 ns  (944 MiB, 610 ns in a dict)
    50,000, random                                      180 ns
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final

from dmcopy.ondisk.scattered import Scattered

RUN: Final = 32
"""From this length on a run within one area and one block is worth an array of 2 KiB."""

_SHIFT: Final = 8
_PLACES: Final = 1 << _SHIFT
_LAST: Final = _PLACES - 1
_ABSENT: Final = (1 << 64) - 1
_EMPTY: Final = array("Q", [_ABSENT]) * _PLACES


class ExceptionTable:
    """Old chunk → COW chunk. The last exception that is put in for a chunk is the one that holds.

    `get` takes one dict lookup, and a second one when there are runs and it is not in the first.
    Each exception is in one of the two, even where the dict has chunks of what is a block, too.
    """

    __slots__ = ("_blocks", "_in_blocks", "_scattered")

    def __init__(self) -> None:
        self._scattered = Scattered()
        self._blocks: dict[int, array[int]] = {}
        self._in_blocks = 0

    def get(self, old: int) -> int | None:
        """Return the COW chunk that chunk `old` of the origin is in, or None."""
        new = self._scattered.get(old)
        if new is None and self._blocks:
            block = self._blocks.get(old >> _SHIFT)
            if block is not None:
                new = block[old & _LAST]
                return None if new == _ABSENT else new
        return new

    def __contains__(self, old: int) -> bool:
        return self.get(old) is not None

    def __len__(self) -> int:
        return len(self._scattered) + self._in_blocks

    def insert(self, old: int, new: int) -> None:
        """Say that chunk `old` of the origin is in chunk `new` of the COW."""
        block = self._blocks.get(old >> _SHIFT)
        if block is None:
            self._scattered[old] = new
            if old & _LAST == _LAST and old - 1 in self._scattered:
                self._compress(old - _LAST)
        else:
            self._put(block, old, new)

    def extend(self, pairs: array[int]) -> None:
        """Insert many, given as old, new, old, new, …: what `parse_area` returns."""
        olds, news = pairs[0::2], pairs[1::2]
        begin = 0
        for start, end in _runs(olds):
            self._extend_scattered(olds[begin:start], news[begin:start])
            self._extend_run(olds[start], news[start:end])
            begin = end
        self._extend_scattered(olds[begin:], news[begin:])

    def remove(self, old: int) -> None:
        """Forget chunk `old`. Raises KeyError when there is no exception for it."""
        if self._scattered.pop(old) is not None:
            return
        block = self._blocks.get(old >> _SHIFT)
        if block is None or block[old & _LAST] == _ABSENT:
            raise KeyError(old)
        block[old & _LAST] = _ABSENT
        self._in_blocks -= 1

    def items(self) -> Iterator[tuple[int, int]]:
        """Yield (old, new) in no promised order."""
        yield from self._scattered.items()
        for key, block in self._blocks.items():
            base = key << _SHIFT
            for low, new in enumerate(block):
                if new != _ABSENT:
                    yield base | low, new

    def _put(self, block: array[int], old: int, new: int) -> None:
        self._scattered.pop(old)
        self._in_blocks -= block[old & _LAST] != _ABSENT
        block[old & _LAST] = new
        if new != _ABSENT:
            self._in_blocks += 1
        else:  # no COW is as large, but a damaged store may say so
            self._scattered[old] = new

    def _extend_scattered(self, olds: array[int], news: array[int]) -> None:
        blocks = self._blocks
        pairs = zip(olds, news, strict=True)
        if not blocks:
            self._scattered.update(pairs)
            return
        for old, new in pairs:
            if old >> _SHIFT in blocks:
                self._put(blocks[old >> _SHIFT], old, new)
            else:
                self._scattered[old] = new

    def _extend_run(self, old: int, news: array[int]) -> None:
        """Insert a run that begins with chunk `old`: what is long enough of it into blocks."""
        done = 0
        while done < len(news):
            low = (old + done) & _LAST
            part = news[done : done + _PLACES - low]
            key = (old + done) >> _SHIFT
            if (key not in self._blocks and len(part) < RUN) or _ABSENT in part:
                for place, new in enumerate(part, old + done):
                    self.insert(place, new)
            else:
                self._put_run(key, low, part)
            done += len(part)

    def _put_run(self, key: int, low: int, news: array[int]) -> None:
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = _EMPTY[:]
        end = low + len(news)
        if self._scattered:
            for old in range((key << _SHIFT) + low, (key << _SHIFT) + end):
                self._scattered.pop(old)
        self._in_blocks += block[low:end].count(_ABSENT)
        block[low:end] = news

    def _compress(self, first: int) -> None:
        """Make a block of the 256 chunks from `first` on, if all of them are there."""
        scattered = self._scattered
        news = array("Q")
        for old in range(first, first + _PLACES):
            new = scattered.get(old)
            if new is None or new == _ABSENT:
                return
            news.append(new)
        self._put_run(first >> _SHIFT, 0, news)


def _runs(olds: array[int]) -> Iterator[tuple[int, int]]:
    """Yield where runs of `RUN` or more consecutive numbers start and end."""
    start, following = 0, -1
    for place, old in enumerate(olds):
        if old != following:
            if place - start >= RUN:
                yield start, place
            start = place
        following = old + 1
    if len(olds) - start >= RUN:
        yield start, len(olds)
