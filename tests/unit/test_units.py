"""Sizes as people write them."""

import pytest

from dmcopy.errors import UsageError
from dmcopy.units import MAX_COUNT, format_sectors, parse_bytes, parse_count, parse_sectors


@pytest.mark.parametrize(
    ("text", "sectors"),
    [("8", 8), ("8s", 8), ("4K", 8), ("4KiB", 8), ("4kb", 8), ("1M", 2048), ("512B", 1), ("0", 0)],
)
def test_sectors(text: str, sectors: int) -> None:
    assert parse_sectors(text) == sectors


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5M", "4Q", "0x10", "M"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_sectors(text)


@pytest.mark.parametrize("text", ["8192P", "18014398509481984", "9" * 30, "9" * 5000 + "K"])
def test_a_size_that_no_device_has_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"too large: .* end at 9223372036854775807") as caught:
        parse_sectors(text)
    assert len(str(caught.value)) < 200
    assert parse_bytes("8191P") == 8191 << 50


def test_a_number_of_what_is_no_size() -> None:
    assert parse_count("007") == 7
    assert parse_count(str(MAX_COUNT)) == MAX_COUNT
    for text in ("", "x", "1.5", "1_000", "٣", "--1"):
        with pytest.raises(UsageError, match="is not a whole number"):
            parse_count(text)
    for text in (str(MAX_COUNT + 1), "9" * 5000):
        with pytest.raises(UsageError, match="is too large"):
            parse_count(text)


def test_an_odd_byte_count_is_refused() -> None:
    with pytest.raises(UsageError, match="1000 bytes, which is not a whole number"):
        parse_sectors("1000B")


def test_a_bare_number_counts_in_the_default_unit() -> None:
    assert parse_bytes("3", default="g") == 3 << 30


def test_sectors_for_people() -> None:
    assert format_sectors(2048) == "2048s (1 MiB)"
