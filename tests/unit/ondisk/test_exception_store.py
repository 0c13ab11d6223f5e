"""The exception store's format: what was measured on kernels, and every way to be wrong."""

from __future__ import annotations

import struct
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.errors import MetadataError
from dmcopy.ondisk.exception_store import (
    MAX_CHUNK_SIZE,
    AreaLayout,
    StoreError,
    StoreHeader,
    build_entry,
    build_words,
    is_chunk_size,
    parse_area,
    words,
)

_SIZES = st.integers(0, 21).map(lambda shift: 1 << shift)


def test_the_header_that_kernels_write() -> None:
    written = bytes.fromhex("536e4170010000000100000008000000")
    assert StoreHeader.parse(written) == StoreHeader(True, 1, 8)
    assert StoreHeader(True, 1, 8).build() == written
    invalidated = bytes.fromhex("536e4170000000000100000008000000")
    assert StoreHeader.parse(invalidated) == StoreHeader(False, 1, 8)
    assert StoreHeader(False, 1, 8).build() == invalidated


def test_a_brand_new_store_has_no_header() -> None:
    assert StoreHeader.parse(bytes(16)) is None
    assert StoreHeader.parse(b"\0\0\0\0" + b"\xff" * 4092) is None  # only the magic counts


@given(st.booleans(), _SIZES)
def test_the_header_comes_back(valid: bool, chunk_size: int) -> None:
    header = StoreHeader(valid, 1, chunk_size)
    assert StoreHeader.parse(header.build() + b"\xff" * 100) == header


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ((0x70416E54, 1, 1, 8), "byte 0: the magic is 0x70416e54"),
        ((0x70416E53, 1, 2, 8), "byte 8: the version is 2"),
        ((0x70416E53, 1, 0, 8), "byte 8: the version is 0"),
        ((0x70416E53, 1, 1, 0), "byte 12: the chunk size is 0"),
        ((0x70416E53, 1, 1, 12), "byte 12: the chunk size is 12"),
        ((0x70416E53, 1, 1, 2 * MAX_CHUNK_SIZE), "byte 12: the chunk size is 4194304"),
    ],
)
def test_a_header_that_is_wrong(fields: tuple[int, ...], what: str) -> None:
    with pytest.raises(StoreError, match=what) as raised:
        StoreHeader.parse(struct.pack("<4I", *fields))
    error = raised.value
    assert str(error) == f"byte {error.offset}: {error.text}"
    assert str(StoreError(8, "odd", "/dev/a")) == "/dev/a: byte 8: odd"


@pytest.mark.parametrize("length", [0, 1, 15])
def test_a_header_that_is_cut_off(length: int) -> None:
    with pytest.raises(MetadataError, match=f"byte {length}: the header is cut off"):
        StoreHeader.parse(StoreHeader(True, 1, 8).build()[:length])


def test_the_chunk_sizes() -> None:
    assert [size for size in range(20) if is_chunk_size(size)] == [1, 2, 4, 8, 16]
    assert is_chunk_size(MAX_CHUNK_SIZE)
    assert not is_chunk_size(2 * MAX_CHUNK_SIZE)


@pytest.mark.parametrize(
    ("chunk_size", "per_area", "areas"),
    [(1, 32, [1, 34, 67]), (8, 256, [1, 258, 515]), (16, 512, [1, 514, 1027])],
)
def test_where_areas_are(chunk_size: int, per_area: int, areas: list[int]) -> None:
    layout = AreaLayout(chunk_size)
    assert layout.per_area == per_area
    assert layout.chunk_bytes == chunk_size * 512
    assert [layout.area_location(area) for area in range(3)] == areas
    assert [chunk for chunk in range(1100) if layout.is_metadata(chunk)][:4] == [0, *areas]


@given(_SIZES, st.integers(0, 5000))
def test_data_chunks_are_what_is_not_metadata(chunk_size: int, chunk: int) -> None:
    layout = AreaLayout(chunk_size)
    following = chunk + 1
    while layout.is_metadata(following):
        following += 1
    assert layout.after(chunk) == following
    assert layout.after(0) == AreaLayout.first_data == 2


@given(_SIZES, st.integers(0, 5000))
def test_areas_on_a_device(chunk_size: int, cow_chunks: int) -> None:
    layout = AreaLayout(chunk_size)
    areas = layout.areas_on(cow_chunks)
    assert areas == sum(layout.is_metadata(chunk) for chunk in range(1, cow_chunks))


def test_an_area_that_a_kernel_wrote() -> None:
    written = [(5, 2), (6, 3), (100, 4), (7, 5)]
    area = b"".join(build_entry(old, new) for old, new in written).ljust(4096, b"\0")
    pairs = parse_area(area)
    assert list(zip(pairs[0::2], pairs[1::2], strict=True)) == written


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=64))
def test_an_area_ends_at_the_first_new_chunk_of_zero(entries: list[tuple[int, int]]) -> None:
    data = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    expected = list[int]()
    for old, new in entries:
        if new == 0:
            break
        expected += (old, new)
    assert parse_area(data).tolist() == expected
    assert parse_area(memoryview(bytearray(data))).tolist() == expected


@pytest.mark.parametrize("swapped", [False, True])
def test_words_come_back(monkeypatch: pytest.MonkeyPatch, swapped: bool) -> None:
    numbers = array("Q", [1, 2, 1 << 40, (1 << 64) - 1])
    before = numbers[:]
    assert words(build_words(numbers)) == numbers
    native = build_words(numbers)
    monkeypatch.setattr("dmcopy.ondisk.exception_store._SWAPPED", swapped)  # another machine's
    assert (build_words(numbers) == native) is not swapped
    assert words(build_words(numbers)) == numbers == before


@pytest.mark.parametrize("surplus", [0, 1, 8, 15])
def test_an_entry_that_is_cut_off_is_none(surplus: int) -> None:
    """The end of a device need not be the end of an entry."""
    assert list(words(build_entry(3, 4) + build_entry(5, 6)[:surplus])) == [3, 4]
