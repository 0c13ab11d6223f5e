"""Exception stores made by hand, and what a snapshot with them reads as."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import islice

from dmcopy.ondisk.exception_store import AreaLayout, StoreHeader, build_entry

Pairs = list[tuple[int, int]]


def data_chunks(chunk_size: int) -> Iterator[int]:
    """Yield the data chunks in the order in which they are given out."""
    layout = AreaLayout(chunk_size)
    chunk = 0
    while True:
        chunk = layout.after(chunk)
        yield chunk


def allocate(olds: Iterable[int], chunk_size: int) -> Pairs:
    """Give chunks of the COW to chunks of the origin, as they are written."""
    return list(zip(olds, data_chunks(chunk_size), strict=False))


def build(
    chunk_size: int, pairs: Pairs, chunks: int, *, valid: bool = True, seed: int = 1
) -> bytearray:
    """Return a COW of that many chunks, random where there is no metadata."""
    layout = AreaLayout(chunk_size)
    size = layout.chunk_bytes
    cow = bytearray(random.Random(seed).randbytes(chunks * size))
    cow[:size] = StoreHeader(valid, 1, chunk_size).build().ljust(size, b"\0")
    entries = iter(pairs)
    for area in range(len(pairs) // layout.per_area + 1):
        at = layout.area_location(area) * size
        here = b"".join(build_entry(*pair) for pair in islice(entries, layout.per_area))
        cow[at : at + size] = here.ljust(size, b"\0")
    return cow


def overlay(
    origin: bytes | bytearray, cow: bytes | bytearray, chunk_size: int, pairs: Pairs
) -> bytes:
    """Return what the snapshot reads as."""
    size = chunk_size * 512
    content = bytearray(origin)
    for old, new in pairs:
        length = min(size, len(origin) - old * size)
        content[old * size : old * size + length] = cow[new * size : new * size + length]
    return bytes(content)


def scattered(count: int, of: int, seed: int = 7) -> list[int]:
    """Return chunks of the origin, some in runs and some alone, in no order."""
    rnd = random.Random(seed)
    chosen: dict[int, None] = {}
    while len(chosen) < count:
        start = rnd.randrange(of)
        for old in range(start, min(of, start + rnd.choice((1, 1, 2, 5, 40)))):
            chosen.setdefault(old)
    return list(chosen)[:count]
