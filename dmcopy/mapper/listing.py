"""What dmsetup prints about all devices: the columns of `info`, and every table."""

from __future__ import annotations

from typing import Final

from dmcopy.mapper import names
from dmcopy.mapper.base import DeviceInfo
from dmcopy.table import Table

FIELDS: Final = (
    "mangled_name,mangled_uuid,major,minor,open,segments,events,tables_loaded,suspended,readonly"
)


def parse_info(text: str) -> list[DeviceInfo]:
    """Return the devices of lines with `FIELDS` between bars; other lines are none.

    A mangled name has neither a bar nor a line break in it, whatever the name has.
    """
    found = []
    for line in text.splitlines():
        if line.count("|") == FIELDS.count(","):
            found.append(_device(*line.strip().split("|")))
    return found


def parse_tables(text: str) -> dict[str, Table]:
    """Return the tables by name. A line of `dmsetup table` is `NAME: ` and a line of a table.

    It ends behind the blank for a device without any; a mangled name has no blank in it.
    """
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, colon, words = line.partition(": ")
        if colon:
            found.setdefault(names.unmangle(name), []).append(words)
    return {name: Table.read("\n".join(lines)) for name, lines in found.items()}


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
) -> DeviceInfo:
    return DeviceInfo(
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
