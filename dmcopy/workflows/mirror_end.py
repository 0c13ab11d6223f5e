"""Ending a mirror: its device is plain again, or goes."""

from __future__ import annotations

from dmcopy.errors import BusyError, DmcopyError
from dmcopy.mapper.base import Mapper
from dmcopy.workflows.mirror import Mirror
from dmcopy.workflows.mirror_change import swap
from dmcopy.workflows.mirror_hidden import hidden_of, in_drill, remove_hidden, touched, whole
from dmcopy.workflows.mirror_swap import SWAP
from dmcopy.workflows.record import Plan
from dmcopy.workflows.site import Site
from dmcopy.workflows.step import Step


def plan_end(mapper: Mapper, name: str, word: str = "") -> Plan:
    """Plan to end a mirror. It is as it was before there was one, and no leg loses anything.

    The device stays, in use or not, with what is on leg `word`; without that, with the table that
    it had before it was made a mirror. One that was made of legs had none: it must not be in use,
    and is removed. Raises UsageError, BusyError, DmcopyError before anything is changed.
    """
    site = Site(mapper)
    name = site.named(name)
    mirror = Mirror.read(mapper, name)
    complete = complete_legs(mirror, site)
    own = [at for at in complete if hidden_of(site, name, mirror.legs[at].device)]
    keep = mirror.leg(word, site) if word else next(iter(own), None)
    hidden = [step for leg in mirror.legs for step in remove_hidden(site, name, leg, ())]
    names = touched(site, name, *mirror.legs)
    if keep is None:
        _check_idle(site, name)
        gone = Step("remove", name, before=str(mapper.table(name)), final=True)
        return Plan("mirror", "drop", name, [gone, *hidden], devices=names)
    if keep not in complete:
        raise DmcopyError(
            f"{name}: leg {keep}, {site.label(mirror.legs[keep].device)}, does not have all of "
            f"the data ({mirror.status.sync} regions are in sync); nothing was changed"
        )
    plain = whole(site, name, mirror.legs[keep], mirror.length)
    steps = [swap(mapper, mirror, SWAP, plain, final=True), *hidden]
    return Plan("mirror", "drop", name, steps, devices=names)


def complete_legs(mirror: Mirror, site: Site) -> list[int]:
    """Return the legs that have all of a mirror's data.

    While it is not in sync that is the one which the others are copied from; see `usable`.
    """
    alive = [at for at in mirror.alive if not in_drill(site, mirror.legs[at].device)]
    if mirror.in_sync:
        return alive
    known = 0 in mirror.alive or mirror.status.sync.used
    return [at for at in alive if known and at == mirror.alive[0]]


def _check_idle(site: Site, name: str) -> None:
    found = site.holders(site.mapper.path(name))
    if found:
        raise BusyError(
            name,
            found,
            f"unmount it, or keep it on one leg: 'dmcopy mirror drop {name} --keep 0'",
        )
