"""What a slice is cut into, and in which order slices are written."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dmcopy.io.request import cut
from dmcopy.kcopyd.subjob import WriteSequence, zero_runs

EXTENTS = st.lists(st.integers(1, 9), min_size=1, max_size=5).map(
    lambda sizes: [(100 * place, size) for place, size in enumerate(sizes)]
)


def spread(extents: Any) -> list[int]:
    return [start + byte for start, size in extents for byte in range(size)]


@given(EXTENTS, st.integers(0, 45), st.integers(0, 45))
def test_a_cut_is_a_part_in_as_few_extents(extents: Any, offset: int, length: int) -> None:
    found = cut(extents, offset, length)
    assert spread(found) == spread(extents)[offset : offset + length]
    assert all(size for _, size in found)
    assert len({start // 100 for start, _ in found}) == len(found)


@given(st.lists(st.booleans(), max_size=12), st.integers(1, 4))
def test_runs_of_zeroes_are_whole_blocks_and_as_long_as_can_be(
    zeroes: list[bool], sectors: int
) -> None:
    """A sector of zeroes within a block is data."""
    data = b"".join(bytes(512) if zero else b"\0" * 511 + b"x" for zero in zeroes)
    runs = zero_runs(data, sectors << 9)
    at = 0
    for place, (zero, offset, count) in enumerate(runs):
        assert offset == at
        assert place == 0 or zero is not runs[place - 1][0]
        at += count
        blocks = range(offset, offset + count, sectors)
        assert all(all(zeroes[block : block + sectors]) is zero for block in blocks)
    assert at == len(zeroes)


class Slice:
    """A slice of 8 sectors that says what is done with it."""

    def __init__(self, said: list[Any], offset: int) -> None:
        self.sub = self
        self.offset = offset
        self.source = self
        self.count = 8
        self.say = said.append

    def write(self) -> None:
        self.say(("write", self.offset))

    def fail(self, error: int) -> None:
        self.say(("fail", self.offset, error))

    def skip(self) -> None:
        self.say(("skip", self.offset))

    def finish(self) -> None:
        self.say(("finish", self.offset))


class Job:
    write_err = 0


def test_writes_go_out_in_order_and_none_behind_an_error() -> None:
    """(dm-kcopyd.c, pop_io_job: a write whose turn has come after another failed is an error.)"""
    said: list[Any] = []
    job: Any = Job()
    sequence = WriteSequence(job)
    slices: list[Any] = [Slice(said, offset) for offset in range(0, 64, 8)]
    for number in (2, 1, 0, 4):
        sequence.ready(slices[number])
    assert said == [("write", 0), ("write", 8), ("write", 16)]
    job.write_err = 1
    sequence.ready(slices[3])
    assert said[3:] == [("fail", 24, 5), ("fail", 32, 5)]
    sequence.ready(slices[6])
    sequence.read_failed(slices[5])
    assert said[5:] == [("finish", 40), ("skip", 48)]
    sequence.ready(slices[7])
    assert said[7:] == [("skip", 56)]
