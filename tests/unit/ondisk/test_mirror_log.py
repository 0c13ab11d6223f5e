"""The mirror log on disk: bits, header, growth, and what a damaged one says."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from unittest.mock import ANY

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.errors import MetadataError
from dmcopy.ondisk import mirror_log
from dmcopy.ondisk.bitset import Bitset, bitset_bytes
from dmcopy.ondisk.mirror_log import MirrorLog, log_bytes

# A kernel's own log (6.1 and 6.12 alike): 16 regions, all clean but region 5, written to just now.
MEASURED = bytes.fromhex("7252694d020000001000000000000000") + bytes(1008)
MEASURED += bytes.fromhex("dfff000000000000") + bytes(504)


@given(st.sets(st.integers(0, 299)), st.integers(1, 300))
def test_a_bit_set_is_a_set(chosen: set[int], size: int) -> None:
    bits = Bitset(size)
    inside = {bit for bit in chosen if bit < size}
    for bit in inside:
        bits[bit] = True
    zeroes = [bit for bit in range(size) if bit not in inside]
    assert bits.count() == len(inside)
    assert list(bits.zeroes()) == zeroes
    edges = [edge for both in bits.zero_ranges() for edge in both]
    assert edges == sorted(set(edges)), "a range that touches another is part of it"
    assert [bit for low, high in bits.zero_ranges() for bit in range(low, high)] == zeroes
    for start in range(size + 1):
        expected = next((bit for bit in zeroes if bit >= start), size)
        assert bits.next_zero(start) == expected
    assert len(bits.data) == bitset_bytes(size)


def test_bit_sets_are_the_same_when_all_of_their_bits_are() -> None:
    assert Bitset(8, b"\x05") == Bitset(8, b"\x05\xff")
    assert Bitset(8, b"\x05") != Bitset(8, b"\x04")
    assert Bitset(8, b"\x05") != Bitset(9, b"\x05")
    assert Bitset(8) != 8
    assert Bitset(8) == ANY, "the other may know"


@pytest.mark.parametrize("given", [0, 1, 7, 8, 9, 16, 100])
def test_a_bit_set_has_whole_words_whatever_is_given(given: int) -> None:
    """A log is written with them: one word more would be over what is behind it."""
    bits = Bitset(70, bytes([255]) * given)
    assert len(bits.data) == bitset_bytes(70) == 16
    assert [bits[bit] for bit in range(70)] == [bit < 8 * given for bit in range(70)]


@given(st.integers(1, 300), st.integers(0, 300), st.integers(0, 300), st.booleans(), st.booleans())
def test_a_range_is_filled(size: int, start: int, end: int, value: bool, before: bool) -> None:
    bits = Bitset(size)
    bits.fill(0, size, before)
    start, end = min(start, size), min(end, size)
    bits.fill(start, end, value)
    expected = [value if start <= bit < end else before for bit in range(size)]
    assert [bits[bit] for bit in range(size)] == expected


@given(st.integers(0, 200), st.integers(1, 200), st.booleans(), st.randoms())
def test_growing_and_shrinking(old: int, new: int, value: bool, rng: random.Random) -> None:
    bits = Bitset(old)
    for bit in range(old):
        bits[bit] = rng.random() < 0.5
    resized = bits.resized(new, value)
    assert [resized[bit] for bit in range(new)] == [
        bits[bit] if bit < old else value for bit in range(new)
    ]
    # No bit is left behind the last region: the kernel clears them up to the next long.
    assert resized.count() == sum(resized[bit] for bit in range(new))


def test_a_log_of_the_kernels() -> None:
    log = MirrorLog.parse(MEASURED)
    assert (log.version, log.nr_regions, log.clean.count()) == (2, 16, 15)
    assert list(log.dirty()) == [5]
    assert log.build() == MEASURED
    assert mirror_log.findings(MEASURED) == []


def test_a_header_is_whole_with_its_last_byte() -> None:
    assert mirror_log.parse_header(MEASURED[:16]).nr_regions == 16
    with pytest.raises(MetadataError, match="byte 15: the log ends before its header does"):
        mirror_log.parse_header(MEASURED[:15])


def test_what_is_not_interpreted_stays_and_version_1_becomes_2() -> None:
    before = bytearray(MEASURED)
    before[4] = 1
    before[16:1024] = random.Random(1).randbytes(1008)
    log = MirrorLog.parse(before)
    assert log.version == 1
    after = log.build(before)
    assert after[16:] == before[16:]
    assert after[:16] == MEASURED[:16]


@pytest.mark.parametrize(
    ("regions", "block", "expected"),
    [(1, 512, 1536), (4096, 512, 1536), (4097, 512, 2048), (16, 4096, 4096), (24577, 4096, 8192)],
)
def test_a_log_is_whole_blocks(regions: int, block: int, expected: int) -> None:
    assert log_bytes(regions, block) == expected


def _damaged(offset: int, data: bytes) -> bytes:
    return MEASURED[:offset] + data + MEASURED[offset + len(data) :]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "byte 0: the log ends before its header"),
        (MEASURED[:15], "byte 15: the log ends before its header"),
        (MEASURED[:1024], "byte 1024: the log ends here, but its 16 regions"),
        (MEASURED[:1025], "byte 1025: the log ends here"),
        (_damaged(0, b"SnAp"), "byte 0: the magic number is"),
        (_damaged(4, struct.pack("<I", 3)), "byte 4: version 3 is unknown"),
        (_damaged(8, struct.pack("<Q", 4097)), "byte 1536: the log ends here"),
        (_damaged(8, struct.pack("<Q", 1 << 32)), "byte 8: 4294967296 regions are more"),
    ],
)
def test_a_damaged_log_is_refused_by_byte(data: bytes, says: str) -> None:
    with pytest.raises(MetadataError, match=says):
        MirrorLog.parse(data, "/dev/log")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (_damaged(1026, b"\1"), "byte 1026: bits are set behind the last region, 15"),
        (_damaged(8, struct.pack("<Q", 13)), "byte 1025: bits are set behind the last region, 12"),
        (_damaged(8, struct.pack("<Q", 0)), "byte 8: the log is for no region at all"),
    ],
)
def test_what_no_kernel_writes_is_found(data: bytes, says: str) -> None:
    assert [text for text in mirror_log.findings(data) if says in text]


@pytest.mark.parametrize(
    ("sync", "magic", "dirty", "failed"),
    [
        (None, None, {5, 16, 17}, False),  # the log counts; the device has grown by two regions
        ("nosync", None, set(), False),
        ("sync", None, set(range(18)), False),
        (None, b"\0\0\0\0", set(range(18)), False),
    ],
)
def test_what_a_resume_makes_of_a_log(
    sync: str | None, magic: bytes | None, dirty: set[int], failed: bool
) -> None:
    data = MEASURED if magic is None else _damaged(0, magic)
    log, grown, has_failed = mirror_log.resume(data, 18, sync)
    assert (set(log.dirty()), grown, has_failed) == (dirty, True, failed)
    assert log.nr_regions == 18


def test_a_resume_with_fewer_regions_forgets_the_rest() -> None:
    log, grown, _ = mirror_log.resume(MEASURED, 3, None)
    assert not grown
    assert log.build(MEASURED)[1024:1032] == b"\x07" + bytes(7)


def test_a_log_of_version_1_counts_when_a_mirror_resumes() -> None:
    """Else the mirror of an older kernel would be copied anew, and whole."""
    log, grown, failed = mirror_log.resume(_damaged(4, b"\1"), 16, None)
    assert (list(log.dirty()), grown, failed) == ([5], False, False)


def test_the_last_region_may_be_short() -> None:
    assert [mirror_log.region_count(sectors, 16) for sectors in (16, 17, 31, 32, 33)] == [
        1, 2, 2, 2, 3,
    ]  # fmt: skip


def test_a_log_may_end_with_the_byte_of_its_last_region() -> None:
    """What is written is longer, in words and blocks, but nothing more is needed."""
    assert mirror_log.findings(MEASURED[: 1024 + 2]) == []


def test_a_log_that_counts_regions_which_it_has_no_room_for_is_taken_as_far_as_it_goes() -> None:
    """The number may be damaged; what it claims must not be what memory is set aside for."""
    data = MEASURED[:8] + struct.pack("<Q", (1 << 64) - 1) + MEASURED[16:]
    log, grown, failed = mirror_log.resume(data, 16, None)
    assert (log.nr_regions, set(log.dirty()), grown, failed) == (16, {5}, False, False)


def test_an_unreadable_log_or_a_future_one_makes_everything_dirty_and_counts_as_failed() -> None:
    for data in (None, _damaged(4, b"\7")):
        log, _, failed = mirror_log.resume(data, 16, None)
        assert failed
        assert log.clean.count() == 0


def test_two_million_regions_are_quick_and_small() -> None:
    # 1 TiB in regions of 512 KiB, every third of the last thousand dirty.
    count = 1 << 21
    bits = Bitset(0).resized(count, True)
    for bit in range(count - 1000, count, 3):
        bits[bit] = False
    data = MirrorLog(bits).build()
    tracemalloc.start()
    began = time.process_time()  # what else the machine does does not count
    log, _, _ = mirror_log.resume(data, count, None)
    assert log.clean.count() == count - 334
    assert log.clean.next_zero(0) == count - 1000
    assert len(list(log.dirty())) == 334
    seconds = time.process_time() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 1
    assert peak < 4 << 20
