"""Knowing a device again: after a reboot, under another node, or not being the same any more."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dmcopy.block import sysfs
from dmcopy.block.processes import identity_at
from dmcopy.io.region import IoRegion
from dmcopy.transfer.destination import Destination


def stable_name(path: str) -> str:
    """Return a name for what is at `path` that the same device has after a reboot, too.

    A disk's serial or wwid, a dm device's UUID, a loop device's file; else the path itself, with
    the inode of a regular file.
    """
    real = os.path.realpath(path)
    identity = identity_at(real)
    if identity is None or len(identity) == 3:
        return f"{real}#{identity[2]}" if identity else real
    name = sysfs.name_of((os.major(identity[1]), os.minor(identity[1])))
    disk = sysfs.parent(name)
    known = _known_by(sysfs.directory(disk or name))
    part = sysfs.read(sysfs.directory(name) / "partition")
    return f"{known}{'-part' + part if part else ''}" if known else real


def _known_by(folder: Path) -> str:
    for attribute in ("wwid", "device/wwid", "serial", "device/serial", "dm/uuid"):
        value = sysfs.read(folder / attribute)
        if value:
            return f"{attribute.rpartition('/')[2]}:{value}"
    backing = sysfs.read(folder / "loop/backing_file")
    return f"loop:{backing}@{sysfs.read(folder / 'loop/offset')}" if backing else ""


def source_of(source: IoRegion | None) -> dict[str, Any] | None:
    """Return what a map remembers of a source; None for zeroes."""
    if source is None:
        return None
    return {
        "name": stable_name(source.device.path),
        "path": source.device.path,
        "sectors": source.device.sectors,
        "from": source.sector,
    }


def identity_of(dest: Destination) -> dict[str, Any]:
    """Return what a map remembers of a destination, beside what was written to it."""
    return {
        "name": stable_name(dest.path),
        "path": dest.path,
        "sectors": dest.region.device.sectors,
        "to": dest.region.sector,
        "count": dest.region.count,
    }


def is_of(state: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a state is the destination's. One that has nothing yet may be another file by now."""
    same = all(state.get(key) == now[key] for key in ("sectors", "to", "count"))
    if not state["written"]:
        return same and (state["name"] == now["name"] or state["path"] == now["path"])
    return same and state["name"] == now["name"]
