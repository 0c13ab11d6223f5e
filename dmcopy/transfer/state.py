"""What a map's companion, FILE.dests, holds: what each destination of a copy durably has.

JSON, one object. A source is null for zeroes; ranges are [start, length] in sectors from the
beginning of the copied range, and errors have the name of their errno behind that.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

from dmcopy.errors import MetadataError
from dmcopy.ranges import RangeSet
from dmcopy.transfer.destination import FailedRange, errno_name
from dmcopy.transfer.identity import Identity

_FORMAT: Final = "dmcopy destinations"
_VERSION: Final = 2
_MOST_SECTORS: Final = 1 << 55  # sectors that a signed 64-bit count of bytes can reach, less some
_NUMBERS: Final = {name: number for number, name in errno.errorcode.items()}


@dataclass(frozen=True)
class Endpoint:
    """One side of a copy. `sectors`: how long the whole device was; `start`: where the copy is."""

    path: str
    identity: Identity
    sectors: int
    start: int

    def fits(self, other: Endpoint) -> bool:
        """Whether the same range of a device of the same length is meant."""
        return (self.sectors, self.start) == (other.sectors, other.start)


@dataclass(frozen=True)
class DestState:
    """A destination: the ranges that it has, and those that could not be written to it."""

    place: Endpoint
    count: int
    written: RangeSet
    failed: tuple[FailedRange, ...]

    def is_of(self, place: Endpoint) -> bool:
        """Whether it is a destination's. One that has nothing yet may be another file by now."""
        same = self.place.identity.is_of(place.identity)
        return self.place.fits(place) and (
            same or (not self.written and self.place.path == place.path)
        )


@dataclass(frozen=True)
class TransferState:
    """The whole copy: its source, the source's bad sectors, the ranges of each destination."""

    source: Endpoint | None
    count: int
    errors: tuple[FailedRange, ...]
    destinations: tuple[DestState, ...]


def build(state: TransferState) -> str:
    """Return the text of a state."""
    return json.dumps(
        {
            "format": _FORMAT,
            "version": _VERSION,
            "source": state.source and asdict(state.source),
            "count": state.count,
            "errors": _rows(state.errors),
            "destinations": [
                {
                    **asdict(dest.place),
                    "count": dest.count,
                    "written": [[start, end - start] for start, end in dest.written],
                    "failed": _rows(dest.failed),
                }
                for dest in state.destinations
            ],
        }
    )


def parse(text: str, path: str) -> TransferState:
    """Parse the text of `path`. Raises MetadataError for whatever is no state."""
    try:
        found = json.loads(text)
        if (found["format"], found["version"]) == (_FORMAT, _VERSION):
            return _state(found)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise MetadataError(
        f"{path} is not what this dmcopy writes: remove it, and its map, to begin again"
    )


def _rows(failures: Iterable[FailedRange]) -> list[list[int | str]]:
    return [[start, end - start, errno_name(error)] for start, end, error in failures]


def _state(found: Any) -> TransferState:
    count = _number(found["count"], 1)
    return TransferState(
        None if found["source"] is None else _place(found["source"]),
        count,
        _failures(found["errors"], count),
        tuple(_dest(row, count) for row in _list(found["destinations"])),
    )


def _dest(row: Any, most: int) -> DestState:
    count = _number(row["count"], 1, most)
    return DestState(
        _place(row),
        count,
        RangeSet(_range(start, length, count) for start, length in _list(row["written"])),
        _failures(row["failed"], count),
    )


def _place(row: Any) -> Endpoint:
    known = row["identity"]
    identity = Identity(*(_text(known[key]) for key in ("always", "boot", "doubt")))
    return Endpoint(_text(row["path"]), identity, _number(row["sectors"]), _number(row["start"]))


def _failures(rows: Any, most: int) -> tuple[FailedRange, ...]:
    return tuple(
        FailedRange(*_range(start, length, most), _NUMBERS.get(_text(name), errno.EIO))
        for start, length, name in _list(rows)
    )


def _range(start: Any, length: Any, most: int) -> tuple[int, int]:
    first = _number(start, 0, most)
    return first, first + _number(length, 1, most - first)


def _number(value: Any, least: int = 0, most: int = _MOST_SECTORS) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError
    return value


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise ValueError
    return value
