"""The map file of GNU ddrescue: which parts of a source were read, which are bad, which are left.

    # comments
    # current_pos  current_status  current_pass
    0x00300000     ?               1
    #      pos        size  status
    0x00000000  0x00300000  +
    0x00300000  0x01000000  ?

Positions and sizes are in bytes; numbers may be decimal, octal (0…) or hexadecimal (0x…). The
blocks follow each other without a gap. Described in ddrescue's manual, "Mapfile structure".
"""

from __future__ import annotations

from collections.abc import Iterable
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
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if line.startswith("#"):
            if not _heads_columns(words) and current is None:
                comments.append(line[1:])
        elif words and current is None:
            current = _parse_current(words, number)
        elif words:
            blocks.append(_parse_block(words, number))
    if current is None:
        raise MetadataError("there is no status line in the map file: it is cut short, or not one")
    return MapFile(tuple(blocks), *current, tuple(comments))


def _heads_columns(words: list[str]) -> bool:
    return words[1:2] == ["current_pos"] or words[1:4] == ["pos", "size", "status"]


def _parse_current(words: list[str], number: int) -> tuple[int, str, int]:
    if len(words) not in (2, 3):  # ddrescue before 1.23 writes no pass
        raise MetadataError(f"line {number} of the map file is no status line: {' '.join(words)!r}")
    return _number(words[0], number), words[1], int(words[2]) if len(words) == 3 else 1


def _parse_block(words: list[str], number: int) -> Block:
    if len(words) != 3:
        raise MetadataError(f"line {number} of the map file is no block: {' '.join(words)!r}")
    return Block(_number(words[0], number), _number(words[1], number), words[2])


def _number(word: str, line: int) -> int:
    try:
        if word.startswith("0") and word[1:].isdecimal():
            return int(word, 8)
        return int(word, 0)
    except ValueError:
        raise MetadataError(f"line {line} of the map file has no number in {word!r}") from None
