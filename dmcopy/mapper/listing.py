"""The columns that `dmsetup info` is asked for, and what they mean."""

from __future__ import annotations

from typing import Final

from dmcopy.mapper import names
from dmcopy.mapper.base import DeviceInfo

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
