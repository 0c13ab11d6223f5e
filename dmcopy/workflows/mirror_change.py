"""Changing the legs of a mirror: a leg made to fail, replaced, dropped, or split off as a copy."""

from __future__ import annotations

from dmcopy.errors import DmcopyError, UsageError
from dmcopy.mapper.base import Mapper, check_name
from dmcopy.table import Error, Linear, Table
from dmcopy.table.mirror import CoreLog, DiskLog
from dmcopy.table.target import Leg
from dmcopy.units import format_sectors
from dmcopy.workflows.mirror import Mirror, fresh, kept, usable
from dmcopy.workflows.mirror_hidden import (
    is_ours,
    new_hidden,
    remove_hidden,
    touched,
    whole,
)
from dmcopy.workflows.mirror_swap import FREEZE, REPLACE, SETTLE, SWAP
from dmcopy.workflows.record import Plan
from dmcopy.workflows.site import Site
from dmcopy.workflows.step import Step


def plan_fail(mapper: Mapper, name: str, word: str) -> Plan:
    """Plan to let all I/O of a leg fail from now on, as a disk's that was pulled out.

    A leg that is no mapped device of dmcopy's is first put on one. What is mounted stays so, and a
    write that the mirror holds blocks no other program.
    """
    site = Site(mapper)
    name = site.named(name)
    mirror = Mirror.read(mapper, name)
    at = mirror.leg(word, site)
    leg = mirror.legs[at]
    info = site.info(leg.device)
    if info is not None and is_ours(site, leg.device):
        length = mapper.table(info.name).length
        broken = Table.of(length, Error())
        before = str(mapper.table(info.name))
        # Final: from then on the leg misses writes, and must not come back as it was.
        steps = [Step(SWAP, info.name, str(broken), before=before, final=True)]
        return Plan("mirror", "fail", name, steps, devices=(name, info.name))
    mirror.check_healthy(site)
    if not mirror.in_sync and isinstance(mirror.log, CoreLog):
        raise DmcopyError(
            f"{name} is not in sync ({mirror.status.sync}), and its log in memory would forget "
            f"which regions are: 'dmcopy mirror wait {name}' first"
        )
    hidden = new_hidden(site, name)
    table = Table.of(mirror.length, Linear(leg.device, leg.offset))
    legs = list(mirror.legs)
    legs[at] = Leg(mapper.path(hidden), 0)
    log = kept(mirror.log, in_sync=mirror.in_sync)
    steps = [
        Step("create", hidden, str(table)),
        swap(mapper, mirror, SWAP, mirror.table(tuple(legs), log)),
        Step(SWAP, hidden, str(Table.of(mirror.length, Error())), final=True),
    ]
    return Plan("mirror", "fail", name, steps, devices=(name, hidden))


def plan_replace(
    mapper: Mapper, name: str, word: str, new: str, *, dirty_only: bool = False, force: bool = False
) -> Plan:
    """Plan to put the device `new` in the place of a leg, failed or not, and to copy to it.

    Writes that the mirror holds for the failed leg are done immediately. `dirty_only` says that
    `new` has what the leg had, because it is that leg: then only what the disk log calls dirty is
    copied. Else `new` must be empty, or `force` be given.
    """
    site = Site(mapper)
    name = site.named(name)
    mirror = Mirror.read(mapper, name)
    at = mirror.leg(word, site)
    staying = usable(mirror, at)
    _check_others(mirror, at, site)
    if dirty_only and isinstance(mirror.log, CoreLog):
        raise UsageError(
            f"{name} has its log in memory, which does not outlive a change of legs: everything "
            "must be copied (leave --dirty-only out)"
        )
    old = mirror.legs[at]
    offset = _check_new(site, mirror, old, new, force=force or dirty_only)
    legs = (*(mirror.legs[number] for number in staying), Leg(new, offset))
    first = kept(mirror.log, in_sync=False) if dirty_only else fresh(mirror.log)
    final = kept(mirror.log, in_sync=True)
    steps = [swap(mapper, mirror, REPLACE, mirror.table(legs, first))]
    after = [Step(SETTLE, name, str(mirror.table(legs, final)))] if first != final else []
    return Plan(
        "mirror",
        "replace",
        name,
        steps,
        after=[*after, *remove_hidden(site, name, old, legs)],
        devices=touched(site, name, old),
        wait="resync",
        undo_failed=not dirty_only,
    )


def plan_drop(mapper: Mapper, name: str, word: str) -> Plan:
    """Plan to continue without a leg, failed or not. The last one that stays is no mirror any more.

    With a leg that has failed go the others that have: each of them is in the way of the others.
    """
    site = Site(mapper)
    name = site.named(name)
    mirror = Mirror.read(mapper, name)
    at = mirror.leg(word, site)
    staying = usable(mirror, at)
    if at not in mirror.failed:
        _check_others(mirror, at, site)
    legs = tuple(mirror.legs[number] for number in staying)
    leaving = [leg for number, leg in enumerate(mirror.legs) if number not in staying]
    first = _without(site, mirror, legs, in_sync=mirror.in_sync)
    final = _without(site, mirror, legs, in_sync=True)
    steps = [swap(mapper, mirror, SWAP, first, final=True)]
    after = [Step(SETTLE, name, str(final))] if first != final else []
    gone = [*leaving, *(legs if len(legs) == 1 else ())]
    after += [step for leg in gone for step in remove_hidden(site, name, leg, ())]
    return Plan(
        "mirror",
        "split",
        name,
        steps,
        after=after,
        devices=touched(site, name, *leaving, *legs),
        wait="resync" if len(legs) > 1 else "",
    )


def plan_split(mapper: Mapper, name: str, word: str, new_name: str) -> Plan:
    """Plan to take a leg off as the device `new_name`: a consistent copy, as of now.

    The file system on the mirror is frozen for the moment that it takes. The mirror continues with
    the other legs, or as a plain device when one is left.
    """
    site = Site(mapper)
    check_name(new_name)
    name = site.named(name)
    mirror = Mirror.read(mapper, name)
    at = mirror.leg(word, site)
    if new_name in site.infos:
        raise UsageError(f"there is a mapped device {new_name} already: give another name")
    mirror.check_healthy(site)
    if not mirror.in_sync:
        raise DmcopyError(
            f"{name}: only {mirror.status.sync} regions are in sync, so a leg is no copy yet: "
            f"'dmcopy mirror wait {name}' first"
        )
    old = mirror.legs[at]
    legs = tuple(leg for number, leg in enumerate(mirror.legs) if number != at)
    rest = _without(site, mirror, legs, in_sync=True)
    steps = [
        Step(FREEZE, name, str(rest), before=str(mapper.table(name)), final=True),
        Step("create", new_name, str(whole(site, name, old, mirror.length))),
        *remove_hidden(site, name, old, ()),
        *(remove_hidden(site, name, legs[0], ()) if len(legs) == 1 else ()),
    ]
    return Plan(
        "mirror", "split", name, steps, devices=(*touched(site, name, old, *legs), new_name)
    )


def swap(mapper: Mapper, mirror: Mirror, verb: str, table: Table, *, final: bool = False) -> Step:
    """Return the step that loads `table` over a mirror, if its legs are no worse by then."""
    before, health = str(mapper.table(mirror.name)), mirror.status.health
    return Step(verb, mirror.name, str(table), before=before, health=health, final=final)


def _without(site: Site, mirror: Mirror, legs: tuple[Leg, ...], *, in_sync: bool) -> Table:
    """Return the table for what stays of a mirror."""
    if len(legs) == 1:
        return whole(site, mirror.name, legs[0], mirror.length)
    return mirror.table(legs, kept(mirror.log, in_sync=in_sync))


def _check_others(mirror: Mirror, leaving: int, site: Site) -> None:
    others = [at for at in mirror.failed if at != leaving]
    if others:
        label = site.label(mirror.legs[others[0]].device)
        raise DmcopyError(
            f"{mirror.name}: leg {others[0]}, {label}, has failed as well: take that one off first "
            f"('dmcopy mirror split {mirror.name} {others[0]} --drop')"
        )
    if mirror.status.log_health != "A" and isinstance(mirror.log, DiskLog):
        raise DmcopyError(f"{mirror.name}: {mirror.trouble(site)}; {mirror.advice}")


def _check_new(site: Site, mirror: Mirror, old: Leg, new: str, *, force: bool) -> int:
    """Return the offset at which `new` is to be used. Raises UsageError, BusyError."""
    key = site.key(new)
    if key == site.key(old.device):
        return old.offset
    used = [*(leg.device for leg in mirror.legs)]
    used += [mirror.log.device] if isinstance(mirror.log, DiskLog) else []
    if key in map(site.key, used):
        raise UsageError(f"{mirror.name} has {new} already: give another device")
    site.check_unused(new)
    site.check_content(new, force=force)
    sectors = site.sectors(new)
    if sectors < mirror.length:
        raise UsageError(
            f"{new} has {format_sectors(sectors)}, and {mirror.name} "
            f"{format_sectors(mirror.length)}: a leg must not be smaller"
        )
    return 0
