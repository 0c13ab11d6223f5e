"""Mapped devices, their tables and statuses as JSON has them."""

from __future__ import annotations

import dataclasses
from typing import Any

from dmcopy.mapper.base import DmInfo
from dmcopy.mapper.tree import Node
from dmcopy.status import StatusLine
from dmcopy.table import Raw, Table
from dmcopy.table.record import Ratio, Record


def info_values(info: DmInfo) -> dict[str, object]:
    """Return what is known of a device as JSON has it."""
    values = dataclasses.asdict(info)
    del values["deps"]
    return values


def table_values(table: Table) -> list[dict[str, object]]:
    """Return a table as JSON has it: the words, the typed values, and what they mean."""
    return [
        {
            "start": line.start,
            "length": line.length,
            "target": line.target_name,
            "text": str(line.target),
            "values": plain(line.target),
            "known": not isinstance(line.target, Raw),
            "means": line.target.describe(),
        }
        for line in table
    ]


def status_values(line: StatusLine) -> dict[str, object]:
    """Return a status line as JSON has it: the words, the typed values, and what is wrong."""
    return {
        "start": line.start,
        "length": line.length,
        "target": line.target,
        "values": plain(line.status),
        "text": str(line.status),
        "trouble": line.status.trouble,
    }


def plain(value: Any) -> Any:
    """Return a record as JSON has it: objects for records and ratios, lists for tuples."""
    if isinstance(value, Record):
        items = dataclasses.fields(value)
        return {item.name: plain(getattr(value, item.name)) for item in items}
    if isinstance(value, Ratio):
        return value._asdict()
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    return value


def node_values(node: Node) -> dict[str, object]:
    """Return a device and what is below it as JSON has it."""
    below = [node_values(one) for one in node.below]
    return {"name": node.name, "number": node.devno, "below": below}
