"""What dmsetup prints about all devices: the columns of `info`, and lines with their names."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from dmcopy.mapper import names
from dmcopy.mapper.base import DmInfo

FIELDS: Final = (
    "mangled_name,mangled_uuid,major,minor,open,segments,events,tables_loaded,suspended,readonly"
)
_NAMED: Final = re.compile(r"(.+?): (\d+ \d+ .*|\d+ dependencies.*|)")
# So that each line begins with the kernel's own name for the device, in which libdm leaves no blank
# and no line break; in mode hex there may be both (measured with 1.02.185).
RAW_NAMES: Final = ("--manglename", "none")


def parse_info(text: str) -> list[DmInfo]:
    """Return the devices of lines with `FIELDS` between bars; other lines are none.

    A mangled name has neither a bar nor a line break in it, whatever the name has.
    """
    found = []
    for line in text.splitlines():
        if line.count("|") == FIELDS.count(","):
            found.append(_device(*line.strip().split("|")))
    return found


def with_deferred(infos: list[DmInfo], text: str) -> list[DmInfo]:
    """Return devices, and of each whether its removal was deferred, as `dmsetup info` prints it.

    No column of `info -c` has it (1.02.185).
    """
    pattern = r"^Name: +(.*)\nState: +.*\(DEFERRED REMOVE\)$"
    leaving = set(map(names.unmangle, re.findall(pattern, text, re.MULTILINE)))
    return [replace(info, deferred=info.name in leaving) for info in infos]


def parse_lines_of(text: str) -> dict[str, str]:
    """Return what `dmsetup table`, `status` or `deps` says of every device, by name.

    Each line is `NAME: ` and a line of that device's. It ends behind the blank for a device without
    any. `text` was asked for with RAW_NAMES.
    """
    found: dict[str, list[str]] = {}
    for line in text.split("\n"):
        match = _NAMED.fullmatch(line)
        if match:
            found.setdefault(names.unmangle(match[1]), []).append(match[2])
    return {name: "\n".join(lines) for name, lines in found.items()}


def parse_deps(text: str) -> tuple[str, ...]:
    """Return the numbers, major:minor, in the lines of `dmsetup deps -o devno`."""
    return tuple(":".join(pair) for pair in re.findall(r"\((\d+), ?(\d+)\)", text))


def _device(
    name: str,
    uuid: str,
    major: str,
    minor: str,
    open_count: str,
    segments: str,
    events: str,
    tables: str,
    suspended: str,
    readonly: str,
) -> DmInfo:
    return DmInfo(
        name=names.unmangle(name),
        uuid=names.unmangle(uuid),
        number=(int(major), int(minor)),
        open_count=int(open_count),
        segments=int(segments),
        events=int(events),
        suspended=suspended == "Suspended",
        readonly=readonly == "Read-only",
        live=tables in ("Live", "Both"),
        inactive=tables in ("Inactive", "Both"),
    )
