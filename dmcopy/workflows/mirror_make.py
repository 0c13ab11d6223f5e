"""Making a mirror: of a device that is in use, or of legs that are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dmcopy.block.devno import openable
from dmcopy.errors import BusyError, MetadataError, UsageError
from dmcopy.mapper.base import Mapper, check_name
from dmcopy.mirror.logfile import read_log
from dmcopy.ondisk.mirror_log import MirrorLog, log_bytes, region_count
from dmcopy.table import Linear, Striped, Table
from dmcopy.table import Mirror as MirrorTarget
from dmcopy.table.mirror import MAX_LEGS, REGION_SIZE, CoreLog, DiskLog
from dmcopy.table.target import Leg
from dmcopy.units import SECTOR_SHIFT, format_sectors
from dmcopy.workflows.mirror import fresh, kept
from dmcopy.workflows.mirror_hidden import new_hidden
from dmcopy.workflows.mirror_swap import SETTLE, SWAP
from dmcopy.workflows.record import Plan
from dmcopy.workflows.site import Site
from dmcopy.workflows.step import Step

FEATURES: Final = ("handle_errors",)
"""Without it the kernel says of a write that reached one leg only that it ended well, and of a
resync that failed that it is done (dm-raid1.c, measured on 6.1 and 6.12). With it the leg's letter
tells, and such writes wait until it is replaced; with keep_log they are done by what is left."""


@dataclass(frozen=True, slots=True)
class MirrorOptions:
    """How a mirror is to be.

    Attributes:
        log: `core`, or a device for the log.
        region_size: sectors; None takes REGION_SIZE, or what fits into a small device.
        features: of the target.
        nosync: the legs are equal already; that is not checked.
        reuse_log: these legs were a mirror with this log before: copy what it calls dirty.
        new_log: what is on the log device is not wanted.
        size: sectors of each leg to use; None takes them whole, which must be equal.
        force: what is on the legs that are copied to, and on the log device, is overwritten.
    """

    log: str = "core"
    region_size: int | None = None
    features: tuple[str, ...] = FEATURES
    nosync: bool = False
    reuse_log: bool = False
    new_log: bool = False
    size: int | None = None
    force: bool = False


def plan_from_device(
    mapper: Mapper, source: str, legs: Sequence[str], options: MirrorOptions
) -> Plan:
    """Plan to make the mapped device `source` a mirror, of what it is now and `legs`.

    What is mounted on it stays so. Its table moves to a hidden device, the first leg, which is
    copied to the others. Raises UsageError and BusyError before anything is changed.
    """
    site = Site(mapper)
    name = site.named(source)
    table = site.table(name)
    odd = [line.target_name for line in table if not isinstance(line.target, Linear | Striped)]
    if odd or not table.lines or options.reuse_log or options.nosync or options.size:
        _refuse_source(name, odd, bool(table.lines))
    if site.infos[name].suspended:
        raise BusyError(name, ("what suspended it",), f"'dmcopy dm resume {name}' first")
    below = {site.key(device) for device in table.devices}
    _check_legs(site, legs, below | {site.key(mapper.path(name))}, at_least=1)
    _check_content(site, legs, options)
    for leg in legs:
        sectors = site.sectors(leg)
        if sectors < table.length:
            raise UsageError(
                f"{leg} has {format_sectors(sectors)}, and {name} {format_sectors(table.length)}: "
                "a leg must not be smaller"
            )
    hidden = new_hidden(site, name)
    log = _log(site, options, table.length, {*below, *map(site.key, legs)})
    all_legs = (Leg(mapper.path(hidden), 0), *(Leg(leg, 0) for leg in legs))
    first, final = (
        _table(table.length, one, all_legs, options)
        for one in (fresh(log), kept(log, in_sync=True))
    )
    steps = [
        Step("create", hidden, str(table)),
        Step(SWAP, name, str(first), before=str(table)),
    ]
    return Plan(
        "mirror",
        "make",
        name,
        steps,
        after=[Step(SETTLE, name, str(final))],
        devices=(name, hidden),
        wait="resync",
        undo_failed=True,
    )


def plan_from_legs(mapper: Mapper, name: str, legs: Sequence[str], options: MirrorOptions) -> Plan:
    """Plan to make the mirror `name` of legs that are not in use; the first is copied to the
    others.

    Raises UsageError and BusyError before anything is changed.
    """
    site = Site(mapper)
    check_name(name)
    if name in site.infos:
        raise UsageError(
            f"there is a mapped device {name} already; to make it a mirror as it is, mounted or "
            f"not: dmcopy mirror make {name} --from {name} --leg NEWDEV"
        )
    _check_legs(site, legs, set(), at_least=2)
    _check_content(site, legs[1:], options)
    length = _common_size(site, legs, options.size)
    if options.reuse_log and options.log == "core":
        raise UsageError("a log in memory is gone: --reuse-log needs one on a device")
    log = _log(site, options, length, set(map(site.key, legs)))
    all_legs = tuple(Leg(leg, 0) for leg in legs)
    first = kept(log, in_sync=False) if options.reuse_log else fresh(log)
    if options.nosync:
        first = (
            DiskLog(log.device, log.region_size, "nosync")
            if isinstance(log, DiskLog)
            else (kept(log, in_sync=True))
        )
    final = kept(log, in_sync=True)
    create = Step("create", name, str(_table(length, first, all_legs, options)))
    after = [Step(SETTLE, name, str(_table(length, final, all_legs, options)))]
    return Plan(
        "mirror",
        "make",
        name,
        [create],
        after=after if first != final else (),
        devices=(name,),
        wait="" if options.nosync else "resync",
        undo_failed=True,
    )


def _refuse_source(name: str, odd: list[str], live: bool) -> None:
    if odd or not live:
        what = odd[0] if odd else "no table"
        raise UsageError(
            f"{name} has {what}: only a device of linear or striped lines can be made a mirror "
            "while it is in use"
        )
    raise UsageError(
        "--from copies the device as it is to the new legs: --nosync, --reuse-log and --size are "
        "for mirrors made of legs"
    )


def _check_legs(site: Site, legs: Sequence[str], below: set[str], *, at_least: int) -> None:
    most = MAX_LEGS - (2 - at_least)
    if not at_least <= len(legs) <= most:
        which = "new legs: give --leg" if at_least == 1 else "legs: give --leg"
        raise UsageError(f"{len(legs)} {which} {at_least} to {most} times")
    seen = set(below)
    for leg in legs:
        key = site.key(leg)
        if key in seen:
            raise UsageError(f"{leg} would be two legs of one mirror: give another device")
        seen.add(key)
        site.check_unused(leg)


def _check_content(site: Site, overwritten: Sequence[str], options: MirrorOptions) -> None:
    if not options.nosync and not options.reuse_log:
        for leg in overwritten:
            site.check_content(leg, force=options.force)


def _common_size(site: Site, legs: Sequence[str], size: int | None) -> int:
    sizes = {leg: site.sectors(leg) for leg in legs}
    smallest = min(sizes.values())
    if size is None and len(set(sizes.values())) > 1:
        text = ", ".join(f"{leg} {format_sectors(sectors)}" for leg, sectors in sizes.items())
        raise UsageError(
            f"the legs differ in size: {text}; --size {smallest} uses the same part of each"
        )
    if size is not None and not 0 < size <= smallest:
        raise UsageError(f"--size {size}: the smallest leg has {format_sectors(smallest)}")
    return size or smallest


def _log(site: Site, options: MirrorOptions, length: int, legs: set[str]) -> CoreLog | DiskLog:
    size = options.region_size or REGION_SIZE
    while options.region_size is None and size > length:
        size >>= 1
    if options.log == "core":
        return CoreLog(size)
    log = DiskLog(options.log, size)
    # Before the size of the log is computed from it.
    Table.of(length, MirrorTarget(log, (Leg("/a", 0), Leg("/b", 0)))).check()
    if site.key(options.log) in legs:
        raise UsageError(f"{options.log} would be both the log and a leg: give another device")
    site.check_unused(options.log)
    _check_log_device(site, options, region_count(length, size))
    return log


def _check_log_device(site: Site, options: MirrorOptions, regions: int) -> None:
    needs = -(-log_bytes(regions) >> SECTOR_SHIFT)
    there = site.sectors(options.log)
    if there < needs:
        raise UsageError(
            f"{options.log} has {there} sectors, and a log of {regions} regions needs {needs}: "
            "give a larger device, or larger regions"
        )
    if options.reuse_log:
        found = read_log(openable(options.log))
        if found.nr_regions != regions:
            raise MetadataError(
                f"{options.log}: this log is of {found.nr_regions} regions, and the mirror would "
                f"have {regions}: the legs or the region size are others than before"
            )
        return
    before = _log_there(options.log)
    if before is None:
        site.check_content(options.log, force=options.force)
    elif not options.new_log:
        raise UsageError(
            f"{options.log} has the log of a mirror of {before.nr_regions} regions, "
            f"{before.clean.count()} of them clean: --reuse-log continues it, if these are its "
            "legs; --new-log forgets it and copies everything"
        )


def _log_there(device: str) -> MirrorLog | None:
    """Return the log that is on a device already, None if there is none."""
    try:
        return read_log(openable(device))
    except MetadataError:
        return None


def _table(
    length: int, log: CoreLog | DiskLog, legs: tuple[Leg, ...], options: MirrorOptions
) -> Table:
    table = Table.of(length, MirrorTarget(log, legs, options.features or None))
    table.check()
    return table
