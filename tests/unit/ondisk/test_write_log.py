"""The log of log-writes: what is built is parsed, and what is damaged is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.errors import MetadataError
from dmcopy.ondisk.write_log import LogEntry, LogFlag, Super, parse_entries

BLOCK_SIZES = st.sampled_from([512, 1024, 4096])
U64 = st.integers(0, (1 << 64) - 1)


def log(entries: list[tuple[LogEntry, bytes]], block_size: int = 512) -> bytes:
    blocks = b"".join(entry.build(block_size) + data for entry, data in entries)
    return Super(len(entries), block_size).build() + blocks


@st.composite
def entries(draw: st.DrawFn, block_size: int) -> tuple[LogEntry, bytes]:
    kind = draw(
        st.sampled_from([LogFlag(0), LogFlag.FUA, LogFlag.FLUSH, LogFlag.DISCARD, LogFlag.MARK])
    )
    if kind == LogFlag.MARK:
        return LogEntry.mark(draw(st.binary(max_size=600)), block_size), b""
    if kind == LogFlag.FLUSH:
        return LogEntry(0, 0, kind), b""
    if kind == LogFlag.DISCARD:
        return LogEntry(draw(U64), draw(U64), kind), b""
    count = draw(st.integers(1, 3))
    data = draw(st.binary(min_size=1, max_size=8)) * block_size * count
    return LogEntry(draw(U64), count, kind), data[: block_size * count]


@given(st.data(), BLOCK_SIZES)
def test_round_trip(data: st.DataObject, block_size: int) -> None:
    expected = data.draw(st.lists(entries(block_size), max_size=6))
    image = log(expected, block_size)
    found = list(parse_entries(image + b"what was there before"))
    assert [entry for entry, _ in found] == [entry for entry, _ in expected]
    for (_, start), (_, content) in zip(found, expected, strict=True):
        assert image[start : start + len(content)] == content


def test_the_bytes() -> None:
    head = Super(3, 512).build()
    assert head[:32].hex(" ", 8) == (
        "7268737766736a00 0100000000000000 0300000000000000 0002000000000000"
    )
    assert head[32:] == bytes(480)
    block = LogEntry(8, 2, LogFlag.FUA | LogFlag.METADATA).build(4096)
    assert block[:32].hex(" ", 8) == (
        "0800000000000000 0200000000000000 1200000000000000 0000000000000000"
    )
    assert block[32:] == bytes(4064)
    mark = LogEntry.mark(b"hello", 512).build(512)
    assert mark[16:40].hex(" ", 8) == "0800000000000000 0500000000000000 68656c6c6f000000"


@pytest.mark.parametrize(("length", "kept"), [(478, 478), (479, 479), (480, 479), (4000, 479)])
def test_a_text_is_cut_to_its_block(length: int, kept: int) -> None:
    mark = LogEntry.mark(b"x" * length, 512)
    assert len(mark.text) == kept
    assert len(mark.build(512)) == 512


def test_what_the_header_counts_is_the_log() -> None:
    image = bytearray(log([(LogEntry.mark(b"one", 512), b""), (LogEntry.mark(b"old", 512), b"")]))
    image[16] = 1
    assert [entry.text for entry, _ in parse_entries(image)] == [b"one"]


@pytest.mark.parametrize(
    ("byte", "value", "words"),
    [
        (0, 0, "byte 0: the magic number"),
        (8, 2, "byte 8: version 2 is unknown: 1 is known"),
        (25, 3, "byte 24: 768 bytes"),
        (25, 0, "byte 24: 0 bytes"),
        (16, 5, "byte 2560: entry 2 of 5 is behind the end"),
        (512 + 8, 9, "byte 1024: the data of entry 0 ends behind the log"),
        (512 + 16, 32, "byte 528: flags 0x20 are unknown"),
        (512 + 25, 2, "byte 536: a text of 512 bytes"),
        (2048 + 16, 0, "byte 2048: entry 1 is a write of nothing"),
    ],
)
def test_what_is_no_log(byte: int, value: int, words: str) -> None:
    image = bytearray(
        log([(LogEntry(0, 2, LogFlag(0)), bytes(1024)), (LogEntry(0, 0, LogFlag.FLUSH), b"")])
    )
    image[byte] = value
    with pytest.raises(MetadataError, match=words):
        list(parse_entries(image, "log"))


def test_a_text_may_fill_its_block() -> None:
    """The kernel leaves a zero byte behind a mark's; another writer need not."""
    entry = LogEntry(0, 0, LogFlag.MARK, b"x" * 480)
    assert [found for found, _ in parse_entries(log([(entry, b"")]))] == [entry]


def test_a_header_that_is_cut() -> None:
    with pytest.raises(MetadataError, match="byte 20: the log ends"):
        Super.parse(Super(0, 512).build()[:20])
