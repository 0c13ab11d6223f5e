"""Map files: what is built is parsed again, ddrescue's own are read, nonsense is refused."""

from __future__ import annotations

import itertools
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.errors import MetadataError
from dmcopy.transfer.mapfile import (
    CURRENT_STATUSES,
    STATUSES,
    Block,
    MapFile,
    build,
    join,
    parse,
    surround,
)

DDRESCUES = """\
# Mapfile. Created by GNU ddrescue version 1.27
# Command line: ddrescue -d /dev/sdb out.img out.map
# Start time:   2026-01-02 03:04:05
# Copying non-tried blocks... Pass 1 (forwards)
# current_pos  current_status  current_pass
0x00120000     ?               1
#      pos        size  status
0x00000000  0x00117000  +
0x00117000  0x00000200  -
0x00117200  0x00000E00  /
0x00118000  0x00001000  *
0x00119000  0x00007000  ?
"""


def blocks() -> st.SearchStrategy[tuple[Block, ...]]:
    pairs = st.lists(st.tuples(st.integers(1, 1 << 60), st.sampled_from(STATUSES)), max_size=20)
    return st.builds(_chain, st.integers(0, 1 << 60), pairs)


def _chain(start: int, pairs: list[tuple[int, str]]) -> tuple[Block, ...]:
    chained = []
    for size, status in pairs:
        chained.append(Block(start, size, status))
        start += size
    return tuple(chained)


# A file's name is in there, and may have everything but a newline in it.
comments = st.lists(st.text(st.characters(exclude_characters="\n")), max_size=4)


@given(blocks(), st.integers(0, 1 << 60), st.sampled_from(CURRENT_STATUSES), comments)
def test_round_trip(
    blocks: tuple[Block, ...], position: int, status: str, comments: list[str]
) -> None:
    kept = tuple(f" {comment}" for comment in comments if "current_pos" not in comment)
    content = MapFile(blocks, position, status, 2, kept)
    assert parse(build(content)) == content


@given(blocks())
def test_joined_blocks_say_the_same(blocks: tuple[Block, ...]) -> None:
    joined = join(blocks)
    assert all(one.status != other.status for one, other in itertools.pairwise(joined))
    assert sum(block.size for block in joined) == sum(block.size for block in blocks)
    for block in blocks:
        home = [other for other in joined if other.position <= block.position < other.end]
        assert [other.status for other in home] == [block.status]


def test_ddrescues_own() -> None:
    content = parse(DDRESCUES)
    assert (content.position, content.status, content.round) == (0x120000, "?", 1)
    assert content.ranges("+") == [(0, 0x117000)]
    assert content.ranges("-/*") == [
        (0x117000, 0x117200),
        (0x117200, 0x118000),
        (0x118000, 0x119000),
    ]
    assert build(content) == DDRESCUES


def test_an_old_one_without_a_pass_and_with_other_numbers() -> None:
    content = parse("0 +\n0 01000 +\n512 0x200 -\n")
    assert content.round == 1
    assert content.blocks == (Block(0, 512, "+"), Block(512, 512, "-"))


def test_comments_behind_blanks_and_at_the_end_of_a_line() -> None:
    content = parse(" \t# one\n0x0 + 3 # two\n\n  # three\n0x0 0x200 + # four\n#five\n")
    assert content == MapFile((Block(0, 512, "+"),), 0, "+", 3, (" one",))


@pytest.mark.parametrize("end", ["\f", "\v", "\x1c", "\x85", "\u2028", "\r", "\udcff"])
def test_what_other_programs_take_for_the_end_of_a_line(end: str) -> None:
    content = parse(f"# Command line: ddrescue o{end}ut 0x1 map\n0x0 + 1\n0x0 0x200 +\n")
    assert content.comments == (f" Command line: ddrescue o{end}ut 0x1 map",)
    assert parse(build(content)) == content


@given(st.text(st.sampled_from("0123xXaF+-?*/# \n\t_\u0663\xb2"), max_size=60))
def test_any_text_is_a_map_or_refused(text: str) -> None:
    with suppress(MetadataError):
        parse(text)


def test_what_lies_around_is_kept() -> None:
    middle = (Block(512, 512, "+"),)
    around = (Block(0, 700, "-"), Block(700, 100, "?"), Block(800, 800, "/"))
    assert surround(middle, around) == (
        *(Block(0, 512, "-"), Block(512, 512, "+"), Block(1024, 576, "/")),
    )
    assert surround(middle, [Block(2048, 10, "+")])[1:] == (
        *(Block(1024, 1024, "?"), Block(2048, 10, "+")),
    )
    assert surround(middle, ()) == middle


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no status line"),
        ("# only a comment\n", "no status line"),
        ("0x0 ? 1 2\n", "line 1"),
        ("0x0 ? 1\n0x0 0x200\n", "line 2"),
        ("0x0 ? 1\n0x0 zero +\n", "no number in 'zero'"),
        ("0x0 ? x\n", "no number in 'x'"),
        ("0x0 ? 1\n0x0 0x4_0 +\n", "no number in '0x4_0'"),
        ("0x0 ? 1\n0x0 \xb2 +\n", "no number in '\xb2'"),
        ("0x0 ? 1\n-1 0x200 +\n", "no number in '-1'"),
        (f"0x0 ? 1\n{'9' * 5000} 1 +\n", "no number in '9{40}'"),
        ("0x0 ? 1\n0x0 0x200 !\n", "no status of a block"),
        ("0x0 x 1\n", "no current status"),
        ("0x0 ? 1\n0x0 0x0 +\n", "is empty"),
        ("0x0 ? 1\n0x0 0x200 +\n0x400 0x200 +\n", "does not begin where"),
    ],
)
def test_what_is_no_map_is_refused(text: str, says: str) -> None:
    with pytest.raises(MetadataError, match=says):
        parse(text)
