"""The map file of GNU ddrescue: which parts of a source were read, which are bad, which are left.

    # comments
    # current_pos  current_status  current_pass
    0x00300000     ?               1
    #      pos        size  status
    0x00000000  0x00300000  +
    0x00300000  0x01000000  ?

Positions and sizes are in bytes; numbers may be decimal, octal (0…) or hexadecimal (0x…). The
blocks follow each other without a gap. Described in ddrescue's manual, "Mapfile structure"; what it
takes beyond that (comments behind blanks and at the end of a line) is as its 1.27 does. A comment
may hold any character, a file's name being in there, and only a newline ends a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from dmcopy.errors import MetadataError

UNTRIED: Final = "?"
UNTRIMMED: Final = "*"
UNSCRAPED: Final = "/"
BAD: Final = "-"
DONE: Final = "+"

STATUSES: Final = UNTRIED + UNTRIMMED + UNSCRAPED + BAD + DONE
CURRENT_STATUSES: Final = STATUSES + "FG"

_SHOWN: Final = 40  # characters of what is no map: a line of that may be long
_WORDS: Final = re.compile(r"[^ \t\n\v\f\r]+")  # C's blanks, and no others
_NUMBER: Final = re.compile(r"0[xX][0-9a-fA-F]{1,16}|0[0-7]*|[1-9][0-9]{0,18}")


class Block(NamedTuple):
    """`size` bytes from `position` on, and what is known of them."""

    position: int
    size: int
    status: str

    @property
    def end(self) -> int:
        """The byte behind the last."""
        return self.position + self.size


@dataclass(frozen=True)
class MapFile:
    """A map file's content. `comments` are without their leading #."""

    blocks: tuple[Block, ...]
    position: int = 0
    status: str = UNTRIED
    round: int = 1
    comments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.status not in CURRENT_STATUSES or len(self.status) != 1:
            raise MetadataError(f"{self.status!r} is no current status of a map file")
        for block in self.blocks:
            if block.status not in STATUSES or len(block.status) != 1:
                raise MetadataError(f"{block.status!r} is no status of a block in a map file")
            if block.position < 0 or block.size <= 0:
                raise MetadataError(f"a map file's block at {block.position:#x} is empty")
        for one, other in zip(self.blocks, self.blocks[1:], strict=False):
            if one.end != other.position:
                raise MetadataError(
                    f"a map file's block at {other.position:#x} does not begin where the one "
                    f"before it ends, at {one.end:#x}"
                )

    def ranges(self, statuses: str) -> Iterable[tuple[int, int]]:
        """Return the byte ranges (start, end) that have one of `statuses`."""
        return [(block.position, block.end) for block in self.blocks if block.status in statuses]


def join(blocks: Iterable[Block]) -> tuple[Block, ...]:
    """Return the blocks with neighbours of the same status put together."""
    joined: list[Block] = []
    for block in blocks:
        if joined and joined[-1].status == block.status and joined[-1].end == block.position:
            joined[-1] = joined[-1]._replace(size=joined[-1].size + block.size)
        else:
            joined.append(block)
    return tuple(joined)


def surround(blocks: Sequence[Block], others: Iterable[Block]) -> tuple[Block, ...]:
    """Return `blocks` with what `others` say of the bytes before and behind; gaps are untried."""
    start, end = blocks[0].position, blocks[-1].end
    before = [b._replace(size=min(b.end, start) - b.position) for b in others if b.position < start]
    behind = [Block(max(b.position, end), b.end - max(b.position, end), b.status) for b in others]
    found: list[Block] = []
    for block in (*before, *blocks, *(block for block in behind if block.size > 0)):
        if found and found[-1].end < block.position:
            found.append(Block(found[-1].end, block.position - found[-1].end, UNTRIED))
        found.append(block)
    return join(found)


def build(content: MapFile) -> str:
    """Return the text of a map file, in ddrescue's own layout."""
    lines = [f"#{comment}" for comment in content.comments]
    lines += ["# current_pos  current_status  current_pass"]
    lines += [f"0x{content.position:08X}     {content.status}               {content.round}"]
    lines += ["#      pos        size  status"]
    lines += [f"0x{pos:08X}  0x{size:08X}  {status}" for pos, size, status in content.blocks]
    return "\n".join(lines) + "\n"


def parse(text: str) -> MapFile:
    """Parse the text of a map file, ddrescue's or ours. Raises MetadataError naming the line.

    The two comments that head the columns are not kept: `build` makes them again.
    """
    comments: list[str] = []
    current: tuple[int, str, int] | None = None
    blocks: list[Block] = []
    for number, line in enumerate(text.split("\n"), 1):
        data, _, comment = line.partition("#")
        words = _WORDS.findall(data)
        if words and current is None:
            current = _parse_current(words, number)
        elif words:
            blocks.append(_parse_block(words, number))
        elif current is None and len(data) < len(line) and not _heads_columns(comment.split()):
            comments.append(comment)
    if current is None:
        raise MetadataError("there is no status line in the map file: it is cut short, or not one")
    return MapFile(tuple(blocks), *current, tuple(comments))


def _heads_columns(words: list[str]) -> bool:
    return words[:1] == ["current_pos"] or words[:3] == ["pos", "size", "status"]


def _parse_current(words: list[str], number: int) -> tuple[int, str, int]:
    if len(words) not in (2, 3):  # ddrescue before 1.23 writes no pass
        raise _wrong(words, number, "status line")
    current_pass = _number(words[2], number) if len(words) == 3 else 1
    return _number(words[0], number), words[1][:_SHOWN], current_pass


def _parse_block(words: list[str], number: int) -> Block:
    if len(words) != 3:
        raise _wrong(words, number, "block")
    return Block(_number(words[0], number), _number(words[1], number), words[2][:_SHOWN])


def _wrong(words: list[str], line: int, what: str) -> MetadataError:
    text = " ".join(words)[:_SHOWN]
    return MetadataError(f"line {line} of the map file is no {what}: {text!r}")


def _number(word: str, line: int) -> int:
    if not _NUMBER.fullmatch(word):
        raise MetadataError(f"line {line} of the map file has no number in {word[:_SHOWN]!r}")
    return int(word, 8 if word.startswith("0") and word[1:].isdigit() else 0)
