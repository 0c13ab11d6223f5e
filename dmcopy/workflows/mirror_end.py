"""Ending a mirror: its device is plain again, or goes."""

from __future__ import annotations

from dmcopy.block import holders
from dmcopy.errors import BusyError, DmcopyError
from dmcopy.mapper.base import Mapper
from dmcopy.workflows.mirror import Mirror
from dmcopy.workflows.mirror_change import remove_hidden, swap, touched
from dmcopy.workflows.mirror_devices import Devices
from dmcopy.workflows.mirror_session import Plan
from dmcopy.workflows.mirror_swap import SWAP
from dmcopy.workflows.record import Step


def plan_end(mapper: Mapper, name: str, word: str = "") -> Plan:
    """Plan to end a mirror. It is as it was before there was one, and no leg loses anything.

    The device stays, in use or not, with what is on leg `word`; without that, with the table that
    it had before it was made a mirror. One that was made of legs had none: it must not be in use,
    and is removed. Raises UsageError, BusyError, DmcopyError before anything is changed.
    """
    devices = Devices(mapper)
    name = devices.named(name).name
    mirror = Mirror.read(mapper, name)
    complete = complete_legs(mirror, devices)
    own = [at for at in complete if devices.hidden(name, mirror.legs[at].device)]
    keep = mirror.leg(word, devices) if word else next(iter(own), None)
    hidden = [step for leg in mirror.legs for step in remove_hidden(devices, name, leg, ())]
    names = touched(devices, name, *mirror.legs)
    if keep is None:
        _check_idle(devices, mirror)
        gone = Step("remove", name, before=str(mapper.table(name)), final=True)
        return Plan("drop", name, [gone, *hidden], devices=names)
    if keep not in complete:
        raise DmcopyError(
            f"{name}: leg {keep}, {devices.label(mirror.legs[keep].device)}, does not have all of "
            f"the data ({mirror.status.sync} regions are in sync); nothing was changed"
        )
    plain = devices.whole(name, mirror.legs[keep], mirror.length)
    return Plan("drop", name, [swap(mapper, mirror, SWAP, plain, final=True), *hidden], (), names)


def complete_legs(mirror: Mirror, devices: Devices) -> list[int]:
    """Return the legs that have all of a mirror's data.

    While it is not in sync that is the one which the others are copied from; see `usable`.
    """
    alive = [at for at in mirror.alive if not devices.in_drill(mirror.legs[at].device)]
    if mirror.in_sync:
        return alive
    known = 0 in mirror.alive or mirror.status.sync.used
    return [at for at in alive if known and at == mirror.alive[0]]


def _check_idle(devices: Devices, mirror: Mirror) -> None:
    info = devices.by_name[mirror.name]
    found = [str(info.open_count)] if info.number is None and info.open_count else []
    if info.number is not None:
        who = holders.who(devices.mapper.path(mirror.name))
        found = [str(holder) for holder in who if holder.kind != "process"]
    if found:
        raise BusyError(
            mirror.name,
            found,
            f"unmount it, or keep it on one leg: 'dmcopy mirror drop {mirror.name} --keep 0'",
        )
