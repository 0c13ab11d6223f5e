"""Damaged stores: whatever is wrong is said in one sentence with its byte, and nothing is written.

Everything that reads a store is run on each; what `check` calls sound is loaded, and the other way
round. The examples are damages that some version got wrong, or that are easily got wrong.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from hypothesis import example, given, settings
from hypothesis import strategies as st

from dmcopy.cow.check import check
from dmcopy.cow.density import measure
from dmcopy.cow.diff import diff_origin, diff_stores
from dmcopy.cow.extract import plan_extract
from dmcopy.cow.info import gather
from dmcopy.cow.load import load
from dmcopy.cow.merge import plan_merge
from dmcopy.cow.picture import to_svg, to_text
from dmcopy.cow.store import Store, read_header, read_store
from dmcopy.errors import DmcopyError, MetadataError
from dmcopy.io.region import IoRegion
from tests.unit.cow.memory import MemoryDisk
from tests.unit.cow.stores import allocate, build

ORIGIN_SECTORS = 150
CHUNKS = 100
EXAMPLES = 20_000 if os.environ.get("DMCOPY_TEST") == "long" else 300

_NUMBERS = st.one_of(
    st.integers(0, 200),
    st.sampled_from([1, 2, 33, 34, 35, 67, 1 << 24, 1 << 31, 1 << 32, 1 << 55, 1 << 56, 1 << 63]),
    st.integers((1 << 64) - 3, (1 << 64) - 1),
)
# Where numbers are: the header's four of 4 bytes, and the entries' of 8 in all areas.
_FIELDS = st.one_of(
    st.tuples(st.sampled_from([0, 4, 8, 12]), st.just(4)),
    st.tuples(
        st.sampled_from([512 * (1 + 33 * area) + 8 * k for area in range(3) for k in range(64)]),
        st.just(8),
    ),
)
_DAMAGES = st.lists(
    st.one_of(
        st.tuples(st.just("set"), _FIELDS, _NUMBERS),
        st.tuples(st.just("flip"), st.integers(0, 70 * 512 - 1), st.integers(1, 255)),
        st.tuples(st.just("cut"), st.integers(0, CHUNKS * 512)),
        st.tuples(st.just("fill"), st.integers(0, CHUNKS), st.sampled_from([0, 0xFF, 1])),
    ),
    min_size=1,
    max_size=4,
)
Damage = tuple[object, ...]


def damaged(count: int, damages: list[Damage]) -> bytes:
    """Return a store with chunks of a sector and `count` exceptions, damaged."""
    data = build(1, allocate(range(0, 3 * count, 3), 1)[: min(count, 50)], CHUNKS)
    for damage in damages:
        match damage:
            case ("set", (int(at), int(size)), int(number)):
                data[at : at + size] = number.to_bytes(8, "little")[:size]
            case ("flip", int(at), int(bits)):
                if at < len(data):
                    data[at] ^= bits
            case ("cut", int(at)):
                del data[at:]
            case ("fill", int(chunk), int(byte)):
                here = len(data[chunk * 512 : (chunk + 1) * 512])
                data[chunk * 512 : chunk * 512 + here] = bytes([byte]) * here
    return bytes(data)


def outcome(action: Callable[[], object]) -> str:
    """Return "" when it went well, and the error's text when it is one of ours."""
    caught: DmcopyError | None = None
    try:
        action()
    except DmcopyError as error:
        caught = error
    if isinstance(caught, MetadataError):
        assert re.match(r"cow: byte \d+: .", str(caught))
    return str(caught or "")


@settings(max_examples=EXAMPLES)
@given(st.integers(0, 50), _DAMAGES)
@example(10, [("set", (12, 4), 1 << 31)])  # a chunk size that would be a terabyte
@example(10, [("set", (12, 4), 1 << 21)])  # the largest, on a disk that is smaller than a chunk
@example(10, [("set", (528, 8), (1 << 64) - 1), ("set", (536, 8), (1 << 64) - 1)])
@example(10, [("set", (520, 8), (1 << 64) - 1)])  # the place that means "none" in a table
@example(32, [("cut", 34 * 512)])  # a full area and nothing behind it
@example(50, [("fill", 34, 0xFF)])  # every exception of an area the same
@example(40, [("set", (17424, 8), 1 << 63)])  # an origin of 2^63 chunks, drawn
@example(10, [("cut", 0)])
@example(10, [("cut", 15)])
def test_damaged_stores(count: int, damages: list[Damage]) -> None:
    data = damaged(count, damages)
    disk, origin = MemoryDisk(data), MemoryDisk(bytes(ORIGIN_SECTORS * 512), "origin")
    region, out = IoRegion(origin, 0, ORIGIN_SECTORS), MemoryDisk(bytes(ORIGIN_SECTORS * 512))
    before = bytes(disk.content)
    outcome(lambda: read_header(disk))
    report = check(disk, origin_sectors=ORIGIN_SECTORS)
    assert all(problem.offset >= 0 for problem in report.problems)
    loaded = outcome(lambda: load(read_store(disk), origin_sectors=ORIGIN_SECTORS))
    if loaded:
        assert report.errors or not report.valid, loaded
    else:  # only the flag may be odd: any number but 0 is valid to the kernel
        assert not [bad for bad in report.problems if bad.is_error and bad.offset != 4]

    merged = outcome(lambda: plan_merge(region, disk))
    assert (merged == "") == (loaded == "")
    extracted = outcome(lambda: plan_extract(region, disk, IoRegion(out, 0, ORIGIN_SECTORS)))
    assert (extracted == "") == (loaded == "")
    outcome(lambda: gather(read_store(disk)))
    outcome(lambda: list(diff_origin(read_store(disk), origin)))
    outcome(lambda: list(diff_stores(read_store(disk), read_store(disk))))
    for sectors in (None, ORIGIN_SECTORS):
        outcome(lambda sectors=sectors: draw(read_store(disk), sectors))  # type: ignore[misc]
    assert (bytes(disk.content), disk.writes) == (before, 0)


def draw(store: Store, origin_sectors: int | None) -> None:
    density = measure(store, width=20, rows=4, origin_sectors=origin_sectors)
    assert density.rows <= 4
    to_text(density)
    to_svg(density)


@given(st.binary(max_size=2048))
def test_anything(data: bytes) -> None:
    disk = MemoryDisk(data)
    check(disk)
    if not outcome(lambda: read_store(disk)):
        outcome(lambda: load(read_store(disk)))
