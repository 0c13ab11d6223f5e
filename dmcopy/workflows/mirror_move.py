"""Moving a device's data to another place while it is in use: what lvm2 calls pvmove."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dmcopy.errors import UsageError
from dmcopy.mapper.base import Mapper
from dmcopy.table import Linear, Table, TableLine
from dmcopy.table import Mirror as MirrorTarget
from dmcopy.table.mirror import REGION_SIZE, CoreLog
from dmcopy.table.target import Leg
from dmcopy.units import format_sectors
from dmcopy.workflows.mirror_make import FEATURES
from dmcopy.workflows.mirror_swap import SETTLE, SWAP
from dmcopy.workflows.record import Plan
from dmcopy.workflows.site import Site
from dmcopy.workflows.step import Step

_SMALLEST: Final = 2
"""Sectors of the smallest region (dm-log.c): a line of one sector cannot be a mirror."""


def plan_move(
    mapper: Mapper,
    name: str,
    source: str,
    dest: str,
    *,
    start: int = 0,
    region_size: int = REGION_SIZE,
    force: bool = False,
) -> Plan:
    """Plan to move what `name` has on the device `source` to `dest`, from sector `start` on.

    Each linear line on `source` becomes a mirror of the old place and the new one, and when all are
    in sync, a linear line on the new one. Until then the old place has every write, so it can be
    taken back; when a leg fails, it is. Raises UsageError, also for what is on `dest` without
    `force`, and BusyError before that.
    """
    site = Site(mapper)
    name = site.named(name)
    table = mapper.table(name)
    places = dict(_places(site, table, source, start))
    if not places:
        below = ", ".join(site.label(device) for device in table.devices)
        raise UsageError(f"{name} has no linear line on {source}; it is on {below or 'nothing'}")
    _check_dest(site, source, dest, start + sum(line.length for line in places), force)
    mirrored = Table(tuple(_mirrored(line, dest, places, region_size) for line in table))
    final = Table(
        tuple(
            TableLine(line.start, line.length, Linear(dest, places[line]))
            if line in places
            else line
            for line in table
        )
    )
    mirrored.check()
    final.check()
    return Plan(
        "mirror",
        "move",
        name,
        steps=[Step(SWAP, name, str(mirrored), before=str(table))],
        after=[Step(SETTLE, name, str(final), final=True)],
        devices=(name,),
        wait="resync",
        undo_failed=True,
    )


def _places(site: Site, table: Table, source: str, start: int) -> Iterator[tuple[TableLine, int]]:
    """Yield each line on `source` and where it goes: one after the other, from `start` on."""
    wanted = site.key(source)
    for line in table:
        if isinstance(line.target, Linear) and site.key(line.target.device) == wanted:
            if line.length < _SMALLEST:
                raise UsageError(f"line {line} is too short to be mirrored")
            yield line, start
            start += line.length


def _mirrored(
    line: TableLine, dest: str, places: dict[TableLine, int], region_size: int
) -> TableLine:
    if line not in places:
        return line
    assert isinstance(line.target, Linear)
    while region_size > line.length:
        region_size >>= 1
    legs = (Leg(line.target.device, line.target.offset), Leg(dest, places[line]))
    return TableLine(line.start, line.length, MirrorTarget(CoreLog(region_size), legs, FEATURES))


def _check_dest(site: Site, source: str, dest: str, end: int, force: bool) -> None:
    if site.key(source) == site.key(dest):
        raise UsageError(f"{dest} is where the data is already")
    site.check_unused(dest)
    site.check_content(dest, force=force)
    sectors = site.sectors(dest)
    if sectors < end:
        raise UsageError(
            f"{dest} has {format_sectors(sectors)}, and the data would end at sector {end}"
        )
