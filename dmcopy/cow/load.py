"""Loading a whole store into memory, refusing one that contradicts itself.

Exceptions are sorted a million at a time, which are 130 MiB meanwhile, and then merged. Measured
with CPython 3.11: 10 million in no order take 153 MiB, and twice that while they are merged.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from heapq import merge
from itertools import islice
from operator import lt
from typing import Final

from dmcopy.cow.store import Entries, Store
from dmcopy.ondisk.exception_store import StoreError

_SORTED_TOGETHER: Final = 1 << 20


class Exceptions:
    """Exceptions by the chunk of the origin, ascending: to be gone through, not to be asked.

    Chunk `olds[i]` of the origin is in chunk `news[i]` of the COW.
    """

    def __init__(self, olds: array[int], news: array[int]) -> None:
        self.olds = olds
        self.news = news

    def __len__(self) -> int:
        return len(self.olds)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.olds, self.news, strict=True)

    def are_unique(self) -> bool:
        """Whether there are no two of one chunk of the origin."""
        return all(map(lt, self.olds, islice(self.olds, 1, None)))


def load(
    store: Store, *, origin_sectors: int | None = None, kept: list[Entries] | None = None
) -> Exceptions:
    """Return every exception of a store; `kept` gets them as they are there.

    Raises MetadataError, naming the byte, for one that points past an end or into metadata, and for
    two of one chunk: what the kernel would make of those is no snapshot of anything.
    """
    if not store.header.valid:
        raise StoreError(
            4,
            "the snapshot was invalidated and is lost: what was overwritten after that is not "
            "here; 'dmcopy cow extract --changed-only' saves what is",
            store.path,
        )
    return load_any(store, origin_sectors=origin_sectors, kept=kept)


def load_any(
    store: Store, *, origin_sectors: int | None = None, kept: list[Entries] | None = None
) -> Exceptions:
    """Load as `load` does, from an invalidated store, too: what it has was saved before it was."""
    runs: list[Exceptions] = []
    some = array("Q")
    count = highest = 0
    checked = False
    for entries in store.entries():
        if not checked and not _looks_sound(store, entries, highest, origin_sectors):
            _require_sound(store, origin_sectors)  # slower: it may only be out of order
            checked = True
        if kept is not None:
            kept.append(entries)
        count += len(entries.pairs) // 2
        highest = entries.pairs[-1]
        some += entries.pairs
        if len(some) >= 2 * _SORTED_TOGETHER:
            runs.append(_sorted(some))
            some = array("Q")
    runs.append(_sorted(some))
    found = runs[0] if len(runs) == 1 else _merged(runs)
    if len(found) != count or not found.are_unique():
        _require_sound(store, origin_sectors)
    return found


def _sorted(pairs: array[int]) -> Exceptions:
    """Return pairs in order; of twins the last one. (To sort tuples would take three times.)"""
    table = dict(zip(pairs[0::2], pairs[1::2], strict=True))
    olds = sorted(table)
    return Exceptions(array("Q", olds), array("Q", map(table.__getitem__, olds)))


def _merged(runs: list[Exceptions]) -> Exceptions:
    olds, news = array("Q"), array("Q")
    for old, new in merge(*runs):
        olds.append(old)
        news.append(new)
    return Exceptions(olds, news)


def _require_sound(store: Store, origin_sectors: int | None) -> None:
    from dmcopy.cow.check import require_sound  # nearly never needed, and costs milliseconds

    require_sound(store, origin_sectors)


def _looks_sound(store: Store, entries: Entries, highest: int, origin_sectors: int | None) -> bool:
    """Check what can be checked quickly: exceptions in ascending order on the COW are no twins."""
    news, layout = entries.news, store.layout
    if news[0] <= highest or news[-1] >= store.chunks:
        return False
    if _is_consecutive(news):  # as it nearly always is
        if news[0] + (1 - news[0]) % layout.stride <= news[-1]:
            return False
    elif not all(map(lt, news, news[1:])) or any(new % layout.stride == 1 for new in news):
        return False
    return origin_sectors is None or max(entries.olds) * layout.chunk_size < origin_sectors


def _is_consecutive(numbers: array[int]) -> bool:
    first, last = numbers[0], numbers[-1]
    if last - first != len(numbers) - 1:
        return False
    return numbers == array("Q", range(first, last + 1))
