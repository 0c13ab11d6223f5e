r"""Words of a table line: splitting and quoting, and reading them one by one.

To dmsetup a backslash in a table is itself: libdm writes two for the kernel, which takes the first
as "the next byte is itself" (dm_split_args in drivers/md/dm-table.c). So `/dev/mapper/a\x20b` is
the node of that name, the one of the device `a b` (measured on 6.1 and 6.12 with 1.02.185). And it
has no way to write a path with white space or a '#' in it; here a backslash before one makes it
part of the word, and backslashes before that, or at the end of a word, are written twice.

dmsetup cuts a line at the first '#', even in the middle of a path; here that is an error, because
half a path is another device. A '#' that begins a word begins a comment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from dmcopy.errors import UsageError
from dmcopy.units import quoted

_DIGITS = len(str(1 << 64))
_SPACE = " \t\n\v\f\r"
_SPECIAL: Final = re.compile(r"(\\*)([# \t\n\v\f\r]|\Z)")
_PLAIN: Final = re.compile(r"[^\\# \t\n\v\f\r]+")
_BACKSLASHES: Final = re.compile(r"\\+")


class TableError(UsageError):
    """A word of a line breaks a rule: `target`, `word` (its name), `value` and `rule` say which."""

    def __init__(self, target: str, word: str, value: object, rule: str) -> None:
        self.target = target
        self.word = word
        self.value = value
        self.rule = rule
        shown = f" {quoted(str(value))}" if value is not None else ""
        super().__init__(f"{target}: {word}{shown} {rule}")


def quote(word: str) -> str:
    """Return `word` as it stands in a table: a backslash before what would end or cut it."""
    return _SPECIAL.sub(lambda match: match[1] * 2 + (match[2] and "\\" + match[2]), word)


def join(words: Iterable[str]) -> str:
    """Return the words as one line of parameters."""
    return " ".join(map(quote, words))


def split_lines(text: str) -> Iterator[list[str]]:
    """Yield the words of each line that has some; comments are dropped. Raises UsageError."""
    words: list[str] = []
    word: list[str] = []  # in parts: what is no table may be one word of many megabytes
    index = 0
    while index < len(text):
        if plain := _PLAIN.match(text, index):
            word.append(plain[0])
            index = plain.end()
            continue
        char = text[index]
        if char == "\\":
            taken, index = _backslashes(text, index)
            word.append(taken)
            continue
        if char == "#":
            if word:
                raise UsageError(
                    f"{''.join(word) + '#'!r}: dmsetup would cut the line at this '#'; "
                    r"write \# for a path that has one, or name the device as major:minor"
                )
            end = text.find("\n", index)
            index = len(text) if end < 0 else end
            continue
        if word:
            words.append("".join(word))
            word = []
        if char == "\n" and words:
            yield words
            words = []
        index += 1
    if word:
        words.append("".join(word))
    if words:
        yield words


def _backslashes(text: str, start: int) -> tuple[str, int]:
    """Return what the backslashes at `start` and the character after them mean, and its end."""
    found = _BACKSLASHES.match(text, start)
    assert found is not None
    count, end = len(found[0]), found.end()
    after = text[end : end + 1]
    if after and after != "#" and after not in _SPACE:
        return found[0], end
    taken = "\\" * (count // 2)
    if count % 2:
        return taken + (after or "\\"), end + 1
    return taken, end


def split(text: str) -> list[str]:
    """Return the words of one line; a line break is only white space. Raises UsageError."""
    return [word for line in split_lines(text) for word in line]


class Words:
    """A cursor over the words of one target; every read names the word, for the error message."""

    def __init__(self, target: str, words: Iterable[str]) -> None:
        self.target = target
        self._left = list(words)[::-1]

    def __len__(self) -> int:
        return len(self._left)

    def peek(self) -> str | None:
        """Return the next word without taking it, or None at the end."""
        return self._left[-1] if self._left else None

    def word(self, what: str) -> str:
        """Take the next word. Raises TableError when there is none."""
        if not self._left:
            raise TableError(self.target, what, None, "is missing")
        return self._left.pop()

    def number(self, what: str) -> int:
        """Take a decimal number. Raises TableError: the kernel takes no sign and no 0x."""
        word = self.word(what)
        return self.as_number(what, word)

    def as_number(self, what: str, word: str) -> int:
        """Return `word` as a decimal number, or raise TableError."""
        if not (word.isascii() and word.isdigit()):
            raise TableError(self.target, what, word, "must be a decimal number")
        if len(word.lstrip("0")) > _DIGITS:
            raise TableError(self.target, what, word, "is beyond the kernel's 64 bits")
        return int(word)

    def take(self, count: int, what: str) -> tuple[str, ...]:
        """Take `count` words. Raises TableError when fewer are left."""
        if count > len(self._left):
            rule = f"says that {count} words follow, but {len(self._left)} do"
            raise TableError(self.target, what, count, rule)
        return tuple(self._left.pop() for _ in range(count))

    def group(self, what: str) -> tuple[str, ...]:
        """Take a count and that many words (dm_read_arg_group in drivers/md/dm-table.c)."""
        return self.take(self.number(f"number of {what}"), f"number of {what}")

    def end(self) -> None:
        """Raise TableError when words are left over, which the kernel refuses or ignores."""
        if self._left:
            raise TableError(self.target, "word", self._left[-1], "is one too many")
