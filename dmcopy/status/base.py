"""Status lines: what `dmsetup status` prints of each line of a table, as typed values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from dmcopy.errors import UsageError
from dmcopy.lazy import Registry
from dmcopy.table.record import Record
from dmcopy.table.words import TableError, Words, split_lines

STATUSES: Registry[Status] = Registry(
    "dmcopy.status",
    legs="mirror multipath raid striped",
    pools="cache clone era thin thin-pool writecache",
    simple="delay dust integrity log-writes vdo verity zoned",
    snapshot="snapshot snapshot-merge",
)

register = STATUSES.register


@dataclass(frozen=True, slots=True)
class Status(Record):
    """What a target says of itself. `parse` and `str` are inverses."""

    @property
    def trouble(self) -> str:
        """What is wrong with the device, in words; empty when it says that all is well."""
        return ""


@dataclass(frozen=True, slots=True)
class Silent(Status):
    """The status of a target that says nothing: linear, zero, error, flakey, snapshot-origin …"""


@dataclass(frozen=True, slots=True)
class Unparsed(Status):
    """Words that no type here stands for: of an unknown target, or of a newer kernel."""

    text: tuple[str, ...] = ()

    @classmethod
    def take(cls, words: Words) -> Self:
        return cls(words.take(len(words), "words"))

    def words(self) -> list[str]:
        return list(self.text)


@dataclass(frozen=True, slots=True)
class FailedStatus(Status):
    """`Fail` (no more I/O is served), `Error` (the state cannot be read) or `-` (not there yet)."""

    state: str

    def words(self) -> list[str]:
        return [self.state]

    @property
    def trouble(self) -> str:
        return {
            "Fail": "the target has failed and serves no more I/O: its metadata needs repair",
            "Error": "the target cannot read its own state",
        }.get(self.state, "")


FAILED_WORDS: dict[str, tuple[str, ...]] = {
    "thin-pool": ("Fail", "Error"),
    "thin": ("Fail", "Error", "-"),
    "cache": ("Fail", "Error"),
    "era": ("Error",),
    "clone": ("Fail", "Error"),
}


@dataclass(frozen=True, slots=True)
class StatusLine:
    """`start length target status` of one line of the active table, in sectors."""

    start: int
    length: int
    target: str
    status: Status

    def __str__(self) -> str:
        words = str(self.status)
        head = f"{self.start} {self.length} {self.target}"
        return f"{head} {words}" if words else head

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the value of a line as `dmsetup status NAME` prints it. Raises UsageError."""
        lines = parse_lines(text)
        if len(lines) != 1:
            raise UsageError(f"{text!r} is not one status line: start, length, target, status")
        line = lines[0]
        return cls(line.start, line.length, line.target, line.status)


def parse_status(target: str, text: str) -> Status:
    """Return the status `text` of `target` as a value.

    Never fails: what has no type, or a form that is not known, is `Unparsed`.
    """
    return _parse(target, [word for line in split_lines(text) for word in line])


def parse_lines(text: str) -> tuple[StatusLine, ...]:
    """Return the lines of `dmsetup status NAME`. Raises UsageError when the head is none."""
    found = []
    for number, words in enumerate(split_lines(text), start=1):
        cursor = Words(f"status line {number}", words)
        start, length = cursor.number("start"), cursor.number("length")
        target = cursor.word("target")
        status = _parse(target, list(cursor.take(len(cursor), "words")))
        found.append(StatusLine(start, length, target, status))
    return tuple(found)


def _parse(target: str, words: list[str]) -> Status:
    if len(words) == 1 and words[0] in FAILED_WORDS.get(target, ()):
        return FailedStatus(words[0])
    cls = STATUSES.get(target)
    if not words:
        return Silent()
    if cls is None:
        return Unparsed(tuple(words))
    cursor = Words(target, words)
    try:
        status = cls.take(cursor)
        cursor.end()
    except TableError:
        return Unparsed(tuple(words))
    return status
