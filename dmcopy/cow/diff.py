"""What two stores, or a store and its origin, have that the other has not."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from dmcopy.cow.load import load_any
from dmcopy.cow.store import PIECE_BYTES, CowDevice, Store, read_bytes
from dmcopy.errors import UsageError
from dmcopy.units import SECTOR_SHIFT


class Difference(enum.StrEnum):
    """How a chunk of the origin is in two places."""

    ONLY_A = "only in A"
    ONLY_B = "only in B"
    DIFFERS = "differs"
    SAME = "same"


class Span(NamedTuple):
    """`count` chunks of the origin from `old` on that are alike in this."""

    kind: Difference
    old: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which is not used


class _Pair(NamedTuple):
    """A chunk of the origin and the bytes at which its content is in A and in B."""

    old: int
    a: int
    b: int


def diff_stores(a: Store, b: Store) -> Iterator[Span]:
    """Yield how two stores of one origin differ, ascending.

    Content is compared where both have a chunk, the whole of it: behind the end of an origin whose
    last chunk is a short one, a store holds anything. Raises UsageError for different chunk sizes,
    and MetadataError for a store that contradicts itself.
    """
    if a.header.chunk_size != b.header.chunk_size:
        raise UsageError(
            f"{a.path} has chunks of {a.header.chunk_size} sectors and {b.path} of "
            f"{b.header.chunk_size}: stores with different chunks cannot be compared"
        )
    return _join(_diff_stores(a, b))


def diff_origin(store: Store, origin: CowDevice) -> Iterator[Span]:
    """Yield which chunks in a store differ from its origin as it is now, and which do not.

    Raises MetadataError for a store that contradicts itself or has chunks past the origin's end.
    """
    size = store.layout.chunk_bytes
    exceptions = load_any(store, origin_sectors=origin.sectors)
    pairs = (_Pair(old, new * size, old * size) for old, new in exceptions)
    return _join(_compare(store.device, origin, pairs, size))


def _diff_stores(a: Store, b: Store) -> Iterator[Span]:
    size = a.layout.chunk_bytes
    in_a = ((old, Difference.ONLY_A, new) for old, new in load_any(a))
    in_b = ((old, Difference.ONLY_B, new) for old, new in load_any(b))
    both: list[_Pair] = []
    for old, found in groupby(merge(in_a, in_b), itemgetter(0)):
        (_, only, new), *twin = found
        if twin:
            both.append(_Pair(old, new * size, twin[0][2] * size))
            if len(both) * size >= PIECE_BYTES:
                yield from _compare(a.device, b.device, both, size)
                both.clear()
        else:
            yield from _compare(a.device, b.device, both, size)
            both.clear()
            yield Span(only, old, 1)
    yield from _compare(a.device, b.device, both, size)


def _compare(
    a: CowDevice, b: CowDevice, pairs: Iterable[_Pair], chunk_bytes: int
) -> Iterator[Span]:
    """Compare chunk by chunk, reading neighbours together."""
    for run in _runs(pairs, chunk_bytes):
        first = run[0]
        length = min(len(run) * chunk_bytes, (b.sectors << SECTOR_SHIFT) - first.b)
        if len(run) == 1:
            same = _is_same(a, first.a, b, first.b, length)
            yield Span(Difference.SAME if same else Difference.DIFFERS, first.old, 1)
            continue
        data_a, data_b = read_bytes(a, first.a, length), read_bytes(b, first.b, length)
        for number, pair in enumerate(run):
            chunk = slice(number * chunk_bytes, (number + 1) * chunk_bytes)
            same = data_a[chunk] == data_b[chunk]
            yield Span(Difference.SAME if same else Difference.DIFFERS, pair.old, 1)


def _is_same(a: CowDevice, at_a: int, b: CowDevice, at_b: int, length: int) -> bool:
    """Compare one chunk, which may be larger than should be in memory as a whole."""
    return all(
        read_bytes(a, at_a + done, min(PIECE_BYTES, length - done))
        == read_bytes(b, at_b + done, min(PIECE_BYTES, length - done))
        for done in range(0, length, PIECE_BYTES)
    )


def _runs(pairs: Iterable[_Pair], chunk_bytes: int) -> Iterator[list[_Pair]]:
    """Yield lists of pairs that are next to each other on both sides, of 1 MiB at most."""
    run: list[_Pair] = []
    for pair in pairs:
        if run and (
            pair.a != run[-1].a + chunk_bytes
            or pair.b != run[-1].b + chunk_bytes
            or (len(run) + 1) * chunk_bytes > PIECE_BYTES
        ):
            yield run
            run = []
        run.append(pair)
    if run:
        yield run


def _join(spans: Iterable[Span]) -> Iterator[Span]:
    """Join neighbours of one kind."""
    last: Span | None = None
    for span in spans:
        if last is not None and span.kind == last.kind and span.old == last.old + last.count:
            last = last._replace(count=last.count + span.count)
            continue
        if last is not None:
            yield last
        last = span
    if last is not None:
        yield last
