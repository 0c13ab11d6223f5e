"""Sizes as people write them."""

import pytest

from dmcopy.errors import UsageError
from dmcopy.units import format_sectors, parse_bytes, parse_sectors


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


def test_an_odd_byte_count_is_refused() -> None:
    with pytest.raises(UsageError, match="1000 bytes, which is not a whole number"):
        parse_sectors("1000B")


def test_a_bare_number_counts_in_the_default_unit() -> None:
    assert parse_bytes("3", default="g") == 3 << 30


def test_sectors_for_people() -> None:
    assert format_sectors(2048) == "2048s (1 MiB)"
