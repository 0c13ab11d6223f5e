"""Tables: lines of start, length and target that follow on each other without a gap."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from dmcopy.errors import DmcopyError, UsageError
from dmcopy.table.target import Raw, Target, parse_target
from dmcopy.table.words import TableError, Words, quote, split_lines

MAX_SECTORS = ((1 << 63) - 1) >> 9  # dm_table_add_target in drivers/md/dm-table.c


@dataclass(frozen=True, slots=True)
class TableLine:
    """`length` sectors of a mapped device, from sector `start` on, and what they map to."""

    start: int
    length: int
    target: Target

    @property
    def end(self) -> int:
        """The first sector after the line."""
        return self.start + self.length

    @property
    def target_name(self) -> str:
        """The kernel's name of the target."""
        return self.target.target if isinstance(self.target, Raw) else self.target.name

    def __str__(self) -> str:
        words = str(self.target)
        head = f"{self.start} {self.length} {quote(self.target_name)}"
        return f"{head} {words}" if words else head


@dataclass(frozen=True, slots=True)
class Table:
    """The lines of a mapped device. `parse` and `str` are inverses.

    A value says what a person or the kernel wrote; `check` says what the kernel would refuse of it.
    """

    lines: tuple[TableLine, ...] = ()

    @classmethod
    def of(cls, length: int, target: Target) -> Self:
        """Return a table of one line, `length` sectors of `target` from sector 0 on."""
        return cls((TableLine(0, length, target),))

    @classmethod
    def concat(cls, parts: Iterable[tuple[int, Target]]) -> Self:
        """Return a table of (length, target) pairs, one after the other."""
        lines: list[TableLine] = []
        for length, target in parts:
            lines.append(TableLine(lines[-1].end if lines else 0, length, target))
        return cls(tuple(lines))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the table that a person wrote, checked. Raises UsageError naming the word.

        Blank lines and comments are skipped. White space, a backslash and a '#' in a path are
        written with a backslash before them.
        """
        table = cls.read(text, lenient=False)
        table.check()
        return table

    @classmethod
    def read(cls, text: str, *, lenient: bool = True) -> Self:
        """Return the table in `text`, unchecked: for what the kernel printed.

        With `lenient`, a target in a form that is not known becomes `Raw`: a newer kernel may print
        more than this version has heard of.
        """
        return cls.of_words(split_lines(text), lenient=lenient)

    @classmethod
    def of_words(cls, lines: Iterable[list[str]], *, lenient: bool = False) -> Self:
        """Return the table of lines that are split into words already, unchecked."""
        read = (_read_line(number, words, lenient) for number, words in enumerate(lines, start=1))
        return cls(tuple(read))

    def check(self) -> None:
        """Raise UsageError for the first line and word that the kernel would refuse."""
        end = 0
        for index, line in enumerate(self.lines, start=1):
            _check_place(index, line, end)
            end = line.end
            try:
                line.target.check(line.length)
            except TableError as error:
                if len(self.lines) > 1:
                    raise TableError(
                        f"line {index}: {error.target}", error.word, error.value, error.rule
                    ) from None
                raise
            if line.target.singleton and len(self.lines) > 1:
                raise UsageError(f"line {index}: {line.target_name} must be the only line")

    @property
    def length(self) -> int:
        """The size of the mapped device in sectors."""
        return self.lines[-1].end if self.lines else 0

    @property
    def devices(self) -> tuple[str, ...]:
        """Every device that the lines name, once each, in the order of the lines."""
        return tuple(dict.fromkeys(name for line in self.lines for name in line.target.devices))

    def with_devices(self, rename: Callable[[str], str]) -> Self:
        """Return the same table with every device replaced by what `rename` makes of it."""
        return self._map(lambda target: target.with_devices(rename))

    def canonical(self) -> Self:
        """Return the table as the kernel would echo it, apart from the names of devices."""
        return self._map(lambda target: target.canonical())

    def _map(self, change: Callable[[Target], Target]) -> Self:
        lines = (TableLine(line.start, line.length, change(line.target)) for line in self.lines)
        return type(self)(tuple(lines))

    def __iter__(self) -> Iterator[TableLine]:
        return iter(self.lines)

    def __str__(self) -> str:
        return "\n".join(map(str, self.lines))


def _read_line(number: int, words: list[str], lenient: bool) -> TableLine:
    cursor = Words(f"table line {number}", words)
    start, length, name = cursor.number("start"), cursor.number("length"), cursor.word("target")
    rest = list(cursor.take(len(cursor), "words"))
    try:
        target = parse_target(name, rest)
    except DmcopyError:  # the form is not known, or the package that offers the target is broken
        if not lenient:
            raise
        target = Raw(name, tuple(rest))
    return TableLine(start, length, target)


def _check_place(index: int, line: TableLine, end: int) -> None:
    # adjoin() in dm-table.c: a first line starts at 0, another where the one before it ends.
    name = f"table line {index}"
    if not line.length:
        raise TableError(name, "length", line.length, "must be at least 1 sector")
    if line.start != end:
        what = "leaves a gap" if line.start > end else "overlaps the line before"
        after = f"the line before ends at {end}" if index > 1 else "a table starts at 0"
        raise TableError(name, "start", line.start, f"{what}: {after}")
    if line.end > MAX_SECTORS:
        raise TableError(name, "length", line.length, f"ends beyond sector {MAX_SECTORS}")
