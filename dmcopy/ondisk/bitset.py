"""A bit set as the kernel keeps it on disk: bit n is bit n % 8 of byte n // 8."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

_PIECE: Final = 1 << 16  # bytes at a time: counting must not double the memory of a large set
_ALL: Final = b"\xff"
LONG: Final = 64
# Of each byte: its zero bits.
_ZEROES: Final = tuple(tuple(bit for bit in range(8) if not byte >> bit & 1) for byte in range(256))


def bitset_bytes(size: int) -> int:
    """Return how many bytes `size` bits take: whole longs of 64 bits."""
    return -(-size // LONG) * (LONG // 8)


class Bitset:
    """`size` bits, in whole longs of 64; those behind the last one are 0.

    `data` is what stands on the disk. Counting and searching go by bytes and more, not by bits: a
    set of two million bits is counted in a fraction of a millisecond.
    """

    __slots__ = ("data", "size")

    def __init__(self, size: int, data: bytes | bytearray | memoryview = b"") -> None:
        self.size = size
        self.data = bytearray(data[: bitset_bytes(size)])
        self.data.extend(bytes(bitset_bytes(size) - len(self.data)))
        self._clear_padding()

    def __getitem__(self, bit: int) -> bool:
        return bool(self.data[bit >> 3] >> (bit & 7) & 1)

    def __setitem__(self, bit: int, value: bool) -> None:
        if value:
            self.data[bit >> 3] |= 1 << (bit & 7)
        else:
            self.data[bit >> 3] &= ~(1 << (bit & 7))

    def __len__(self) -> int:
        return self.size

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Bitset):
            return NotImplemented
        return self.size == other.size and self.data == other.data

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"<Bitset {self.count()} of {self.size}>"

    def fill(self, start: int, end: int, value: bool) -> None:
        """Set every bit from `start` up to but not including `end` to `value`."""
        while start < end and start & 7:
            self[start] = value
            start += 1
        while start < end and end & 7:
            end -= 1
            self[end] = value
        if start < end:
            first, last = start >> 3, end >> 3
            self.data[first:last] = (_ALL if value else b"\0") * (last - first)

    def resized(self, size: int, value: bool) -> Bitset:
        """Return a set of another size; bits that this one does not have are `value`."""
        other = Bitset(size, self.data)
        other.fill(self.size, size, value)
        return other

    def copy(self) -> Bitset:
        return Bitset(self.size, self.data)

    def count(self) -> int:
        data = self.data
        return sum(
            int.from_bytes(data[start : start + _PIECE], "little").bit_count()
            for start in range(0, len(data), _PIECE)
        )

    def next_zero(self, start: int) -> int:
        """Return the first bit at or behind `start` that is 0; `size` when there is none."""
        while start < self.size and start & 7:
            if not self[start]:
                return start
            start += 1
        place = -(-start >> 3)
        while place < len(self.data):
            piece = self.data[place : place + _PIECE]
            ones = len(piece) - len(piece.lstrip(_ALL))
            if ones < len(piece):
                return min(self.size, (place + ones) * 8 + _ZEROES[piece[ones]][0])
            place += len(piece)
        return self.size

    def zeroes(self) -> Iterator[int]:
        """Yield every bit that is 0, in ascending order."""
        start = self.next_zero(0)
        while start < self.size:
            base = start & ~7
            yield from (
                base + bit for bit in _ZEROES[self.data[base >> 3]] if base + bit < self.size
            )
            start = self.next_zero(base + 8)

    def zero_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield the runs of bits that are 0 as half-open ranges, in ascending order."""
        first = end = -1
        for bit in self.zeroes():
            if bit != end:
                if first >= 0:
                    yield first, end
                first = bit
            end = bit + 1
        if first >= 0:
            yield first, end

    def _clear_padding(self) -> None:
        self.fill(self.size, len(self.data) * 8, False)
