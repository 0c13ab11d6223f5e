"""The log of log-writes: what is built is parsed, and what is damaged is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.errors import MetadataError
from dmcopy.ondisk.write_log import Entry, Flag, Super, parse_entries

BLOCK_SIZES = st.sampled_from([512, 1024, 4096])
U64 = st.integers(0, (1 << 64) - 1)


def log(entries: list[tuple[Entry, bytes]], block_size: int = 512) -> bytes:
    blocks = b"".join(entry.build(block_size) + data for entry, data in entries)
    return Super(len(entries), block_size).build() + blocks


@st.composite
def entries(draw: st.DrawFn, block_size: int) -> tuple[Entry, bytes]:
    kind = draw(st.sampled_from([Flag(0), Flag.FUA, Flag.FLUSH, Flag.DISCARD, Flag.MARK]))
    if kind == Flag.MARK:
        return Entry.mark(draw(st.binary(max_size=600)), block_size), b""
    if kind == Flag.FLUSH:
        return Entry(0, 0, kind), b""
    if kind == Flag.DISCARD:
        return Entry(draw(U64), draw(U64), kind), b""
    count = draw(st.integers(1, 3))
    data = draw(st.binary(min_size=1, max_size=8)) * block_size * count
    return Entry(draw(U64), count, kind), data[: block_size * count]


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
    block = Entry(8, 2, Flag.FUA | Flag.METADATA).build(4096)
    assert block[:32].hex(" ", 8) == (
        "0800000000000000 0200000000000000 1200000000000000 0000000000000000"
    )
    assert block[32:] == bytes(4064)
    mark = Entry.mark(b"hello", 512).build(512)
    assert mark[16:40].hex(" ", 8) == "0800000000000000 0500000000000000 68656c6c6f000000"


@pytest.mark.parametrize(("length", "kept"), [(478, 478), (479, 479), (480, 479), (4000, 479)])
def test_a_text_is_cut_to_its_block(length: int, kept: int) -> None:
    mark = Entry.mark(b"x" * length, 512)
    assert len(mark.text) == kept
    assert len(mark.build(512)) == 512


def test_what_the_header_counts_is_the_log() -> None:
    image = bytearray(log([(Entry.mark(b"one", 512), b""), (Entry.mark(b"old", 512), b"")]))
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
    image = bytearray(log([(Entry(0, 2, Flag(0)), bytes(1024)), (Entry(0, 0, Flag.FLUSH), b"")]))
    image[byte] = value
    with pytest.raises(MetadataError, match=words):
        list(parse_entries(image, "log"))


def test_a_text_may_fill_its_block() -> None:
    """The kernel leaves a zero byte behind a mark's; another writer need not."""
    entry = Entry(0, 0, Flag.MARK, b"x" * 480)
    assert [found for found, _ in parse_entries(log([(entry, b"")]))] == [entry]


def test_a_header_that_is_cut() -> None:
    with pytest.raises(MetadataError, match="byte 20: the log ends"):
        Super.parse(Super(0, 512).build()[:20])
