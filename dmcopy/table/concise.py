r"""The concise format: whole devices on one line, as `dmsetup table --concise` prints them.

`name,uuid,minor,ro|rw,line[,line...]`, devices separated by `;`. A backslash makes a comma, a
semicolon or a backslash part of a field; white space after a separator is skipped (man dmsetup; the
kernel reads the same from dm-mod.create=, in drivers/md/dm-init.c).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dmcopy.errors import UsageError
from dmcopy.table.table import Table
from dmcopy.table.words import split
from dmcopy.units import parse_count, quoted

_MAX_MINOR = (1 << 20) - 1  # MINORBITS in include/linux/kdev_t.h
_SPECIAL = re.compile(r"[\\,;]")
_PLAIN = re.compile(r"[^\\,;]+")


@dataclass(frozen=True, slots=True)
class ConciseDevice:
    """A device of the concise format: what `create` needs to make it. `minor` None: any."""

    name: str
    table: Table
    uuid: str = ""
    minor: int | None = None
    readonly: bool = False

    def __str__(self) -> str:
        minor = "" if self.minor is None else str(self.minor)
        fields = [self.name, self.uuid, minor, "ro" if self.readonly else "rw"]
        return ",".join(map(_quote, [*fields, *map(str, self.table)]))


def parse_concise(text: str) -> tuple[ConciseDevice, ...]:
    """Return the devices in `text`, their tables checked. Raises UsageError."""
    devices = tuple(_device(fields) for fields in _split(text) if any(fields))
    for one in devices:
        one.table.check()
    return devices


def read_concise(text: str) -> tuple[ConciseDevice, ...]:
    """Return the devices in `text`, unchecked: for what the kernel printed."""
    return tuple(_device(fields, lenient=True) for fields in _split(text) if any(fields))


def format_concise(devices: Iterable[ConciseDevice]) -> str:
    """Return the devices as one line."""
    return ";".join(map(str, devices))


def _quote(field: str) -> str:
    return _SPECIAL.sub(lambda match: "\\" + match[0], field)


def _split(text: str) -> Iterator[list[str]]:
    """Yield the fields of each device, with this format's own backslashes taken off."""
    fields: list[str] = []
    field: list[str] = []
    index = 0
    while index < len(text):
        if plain := _PLAIN.match(text, index):
            field.append(plain[0])
            index = plain.end()
            continue
        char = text[index]
        if char == "\\" and index + 1 < len(text):
            field.append(text[index + 1])
            index += 2
            continue
        index += 1
        if char in ",;":
            fields.append("".join(field))
            field = []
            while index < len(text) and text[index].isspace():
                index += 1
            if char == ";":
                yield fields
                fields = []
        else:
            field.append(char)  # a backslash at the end
    yield [*fields, "".join(field)]


def _device(fields: list[str], lenient: bool = False) -> ConciseDevice:
    if len(fields) < 5:
        raise UsageError(
            f"{','.join(fields)!r}: a device in the concise format is name,uuid,minor,ro|rw,table"
        )
    name, uuid, minor, flags, *lines = fields
    if flags not in ("ro", "rw", ""):
        raise UsageError(f"{name}: the fourth field is {flags!r}; it must be ro or rw")
    if minor and (not (minor.isascii() and minor.isdigit()) or parse_count(minor) > _MAX_MINOR):
        raise UsageError(
            f"{name}: the third field is {quoted(minor)}; it must be a minor number or empty"
        )
    # A line break inside a field is the layout of a long line: it only separates words.
    words = (split(line) for line in lines)
    table = Table.of_words((line for line in words if line), lenient=lenient)
    return ConciseDevice(name.strip(), table, uuid, int(minor) if minor else None, flags == "ro")
