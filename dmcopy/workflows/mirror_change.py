"""Changing the legs of a mirror: a leg made to fail, replaced, dropped, or split off as a copy."""

from __future__ import annotations

from dmcopy.errors import DmcopyError, UsageError
from dmcopy.mapper.base import Mapper, check_name
from dmcopy.table import Error, Linear, Table
from dmcopy.table.mirror import CoreLog, DiskLog
from dmcopy.table.target import Leg
from dmcopy.units import format_sectors
from dmcopy.workflows.mirror import Mirror, fresh, kept, usable
from dmcopy.workflows.mirror_devices import Devices, identity
from dmcopy.workflows.mirror_session import Plan
from dmcopy.workflows.mirror_swap import DETACH, REPLACE, SETTLE, SWAP
from dmcopy.workflows.record import Step


def plan_fail(mapper: Mapper, name: str, word: str) -> Plan:
    """Plan to let all I/O of a leg fail from now on, as a disk's that was pulled out.

    A leg that is no mapped device of dmcopy's is first put on one. What is mounted stays so, and a
    write that the mirror holds is in nobody's way.
    """
    devices = Devices(mapper)
    name = devices.named(name).name
    mirror = Mirror.read(mapper, name)
    at = mirror.leg(word, devices)
    leg = mirror.legs[at]
    info = devices.mapped(leg.device)
    if info is not None and devices.is_ours(leg.device):
        length = mapper.table(info.name).length
        broken = Table.of(length, Error())
        before = str(mapper.table(info.name))
        # Final: from then on the leg misses writes, and must not come back as it was.
        steps = [Step(SWAP, info.name, str(broken), before=before, final=True)]
        return Plan("fail", name, steps, devices=(name, info.name))
    mirror.check_healthy(devices)
    if not mirror.in_sync and isinstance(mirror.log, CoreLog):
        raise DmcopyError(
            f"{name} is not in sync ({mirror.status.sync}), and its log in memory would forget "
            f"which regions are: 'dmcopy mirror wait {name}' first"
        )
    hidden = devices.new_hidden(name)
    table = Table.of(mirror.length, Linear(leg.device, leg.offset))
    legs = list(mirror.legs)
    legs[at] = Leg(mapper.path(hidden), 0)
    log = kept(mirror.log, in_sync=mirror.in_sync)
    steps = [
        Step("create", hidden, str(table)),
        swap(mapper, mirror, SWAP, mirror.table(tuple(legs), log)),
        Step(SWAP, hidden, str(Table.of(mirror.length, Error())), final=True),
    ]
    return Plan("fail", name, steps, devices=(name, hidden))


def plan_replace(
    mapper: Mapper, name: str, word: str, new: str, *, dirty_only: bool = False, force: bool = False
) -> Plan:
    """Plan to put the device `new` in the place of a leg, failed or not, and to copy to it.

    Writes that the mirror holds for the failed leg go on at once. `dirty_only` says that `new` has
    what the leg had, because it is that leg: then only what the disk log calls dirty is copied.
    Else `new` must be empty, or `force` be given.
    """
    devices = Devices(mapper)
    name = devices.named(name).name
    mirror = Mirror.read(mapper, name)
    at = mirror.leg(word, devices)
    staying = usable(mirror, at)
    _check_others(mirror, at, devices)
    if dirty_only and isinstance(mirror.log, CoreLog):
        raise UsageError(
            f"{name} has its log in memory, which does not outlive a change of legs: everything "
            "must be copied (leave --dirty-only out)"
        )
    old = mirror.legs[at]
    offset = _check_new(devices, mirror, old, new, force=force or dirty_only)
    legs = (*(mirror.legs[number] for number in staying), Leg(new, offset))
    first = kept(mirror.log, in_sync=False) if dirty_only else fresh(mirror.log)
    final = kept(mirror.log, in_sync=True)
    steps = [swap(mapper, mirror, REPLACE, mirror.table(legs, first))]
    after = [Step(SETTLE, name, str(mirror.table(legs, final)))] if first != final else []
    return Plan(
        *("replace", name, steps, [*after, *remove_hidden(devices, name, old, legs)]),
        devices=touched(devices, name, old),
        resync=True,
        undo_failed=not dirty_only,
    )


def plan_drop(mapper: Mapper, name: str, word: str) -> Plan:
    """Plan to go on without a leg, failed or not. The last one that stays is no mirror any more.

    With a leg that has failed go the others that have: each of them is in the way of the others.
    """
    devices = Devices(mapper)
    name = devices.named(name).name
    mirror = Mirror.read(mapper, name)
    at = mirror.leg(word, devices)
    staying = usable(mirror, at)
    if at not in mirror.failed:
        _check_others(mirror, at, devices)
    legs = tuple(mirror.legs[number] for number in staying)
    leaving = [leg for number, leg in enumerate(mirror.legs) if number not in staying]
    first = _without(devices, mirror, legs, in_sync=mirror.in_sync)
    final = _without(devices, mirror, legs, in_sync=True)
    steps = [swap(mapper, mirror, SWAP, first, final=True)]
    after = [Step(SETTLE, name, str(final))] if first != final else []
    gone = [*leaving, *(legs if len(legs) == 1 else ())]
    after += [step for leg in gone for step in remove_hidden(devices, name, leg, ())]
    return Plan(
        *("split", name, steps, after),
        devices=touched(devices, name, *leaving, *legs),
        resync=len(legs) > 1,
    )


def plan_split(mapper: Mapper, name: str, word: str, new_name: str) -> Plan:
    """Plan to take a leg off as the device `new_name`: a consistent copy, as of now.

    The file system on the mirror is frozen for the moment that it takes. The mirror goes on with
    the other legs, or as a plain device when one is left.
    """
    devices = Devices(mapper)
    check_name(new_name)
    name = devices.named(name).name
    mirror = Mirror.read(mapper, name)
    at = mirror.leg(word, devices)
    if new_name in devices.by_name:
        raise UsageError(f"there is a mapped device {new_name} already: give another name")
    mirror.check_healthy(devices)
    if not mirror.in_sync:
        raise DmcopyError(
            f"{name}: only {mirror.status.sync} regions are in sync, so a leg is no copy yet: "
            f"'dmcopy mirror wait {name}' first"
        )
    old = mirror.legs[at]
    legs = tuple(leg for number, leg in enumerate(mirror.legs) if number != at)
    rest = _without(devices, mirror, legs, in_sync=True)
    steps = [
        Step(DETACH, name, str(rest), before=str(mapper.table(name)), final=True),
        Step("create", new_name, str(devices.whole(name, old, mirror.length))),
        *remove_hidden(devices, name, old, ()),
        *(remove_hidden(devices, name, legs[0], ()) if len(legs) == 1 else ()),
    ]
    return Plan("split", name, steps, devices=(*touched(devices, name, old, *legs), new_name))


def swap(mapper: Mapper, mirror: Mirror, verb: str, table: Table, *, final: bool = False) -> Step:
    """Return the step that loads `table` over a mirror, if its legs are no worse by then."""
    before, health = str(mapper.table(mirror.name)), mirror.status.health
    return Step(verb, mirror.name, str(table), before=before, health=health, final=final)


def _without(devices: Devices, mirror: Mirror, legs: tuple[Leg, ...], *, in_sync: bool) -> Table:
    """Return the table for what stays of a mirror."""
    if len(legs) == 1:
        return devices.whole(mirror.name, legs[0], mirror.length)
    return mirror.table(legs, kept(mirror.log, in_sync=in_sync))


def _check_others(mirror: Mirror, leaving: int, devices: Devices) -> None:
    others = [at for at in mirror.failed if at != leaving]
    if others:
        label = devices.label(mirror.legs[others[0]].device)
        raise DmcopyError(
            f"{mirror.name}: leg {others[0]}, {label}, has failed as well: take that one off first "
            f"('dmcopy mirror split {mirror.name} {others[0]} --drop')"
        )
    if mirror.status.log_health != "A" and isinstance(mirror.log, DiskLog):
        raise DmcopyError(f"{mirror.name}: {mirror.trouble(devices)}; {mirror.advice}")


def _check_new(devices: Devices, mirror: Mirror, old: Leg, new: str, *, force: bool) -> int:
    """Return the offset at which `new` is to be used. Raises UsageError, BusyError."""
    key = identity(new)
    if key == identity(old.device):
        return old.offset
    used = [*(leg.device for leg in mirror.legs)]
    used += [mirror.log.device] if isinstance(mirror.log, DiskLog) else []
    if key in map(identity, used):
        raise UsageError(f"{mirror.name} has {new} already: give another device")
    devices.check_unused(new)
    devices.check_content(new, force=force)
    sectors = devices.sectors(new)
    if sectors < mirror.length:
        raise UsageError(
            f"{new} has {format_sectors(sectors)}, and {mirror.name} "
            f"{format_sectors(mirror.length)}: a leg must not be smaller"
        )
    return 0


def remove_hidden(devices: Devices, name: str, leg: Leg, legs: tuple[Leg, ...]) -> list[Step]:
    """Return the step that removes the hidden device under a leg, if there is one to remove."""
    hidden = devices.hidden(name, leg.device)
    if not hidden or identity(leg.device) in {identity(one.device) for one in legs}:
        return []
    return [Step("remove", hidden, before=str(devices.mapper.table(hidden)), final=True)]


def touched(devices: Devices, name: str, *legs: Leg) -> tuple[str, ...]:
    """Return the names of the mapped devices that a change of these legs is about."""
    hidden = (devices.hidden(name, leg.device) for leg in legs)
    return (name, *filter(None, hidden))
