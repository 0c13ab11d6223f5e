"""The hidden devices between a mirror and its legs: named as lvm2 names such, and removed again."""

from __future__ import annotations

import re

from dmcopy.mapper.base import PREFIX
from dmcopy.table import Error, Linear, Table
from dmcopy.table.target import Leg
from dmcopy.workflows.site import Site
from dmcopy.workflows.step import Step


def is_ours(site: Site, device: str) -> bool:
    """Return whether `device` is a mapped one that dmcopy made; its UUID tells."""
    info = site.info(device)
    return info is not None and (info.number is None or info.uuid.startswith(PREFIX.upper()))


def in_drill(site: Site, device: str) -> bool:
    """Return whether `device` is a leg that 'mirror fail' has made to fail."""
    lines = site.table(site.mapped(device)).lines if is_ours(site, device) else ()
    return bool(lines) and all(isinstance(line.target, Error) for line in lines)


def new_hidden(site: Site, name: str) -> str:
    """Return a free name for a device between the mirror `name` and a leg."""
    number = 0
    while f"{name}_mimage_{number}" in site.infos:
        number += 1
    return f"{name}_mimage_{number}"


def hidden_of(site: Site, name: str, device: str) -> str:
    """Return the name of `device` if it is one that `new_hidden` named for `name`, else ""."""
    found = site.mapped(device) if is_ours(site, device) else ""
    return found if re.fullmatch(re.escape(name) + r"_mimage_\d+", found) else ""


def whole(site: Site, name: str, leg: Leg, length: int) -> Table:
    """Return the table that makes a device of one leg of `name`, whatever is in between."""
    hidden = hidden_of(site, name, leg.device)
    if hidden and not leg.offset and site.table(hidden).length == length:
        return site.table(hidden)
    return Table.of(length, Linear(leg.device, leg.offset))


def remove_hidden(site: Site, name: str, leg: Leg, legs: tuple[Leg, ...]) -> list[Step]:
    """Return the step that removes the hidden device under a leg, if there is one to remove."""
    hidden = hidden_of(site, name, leg.device)
    if not hidden or site.key(leg.device) in {site.key(one.device) for one in legs}:
        return []
    return [Step("remove", hidden, before=str(site.table(hidden)), final=True)]


def touched(site: Site, name: str, *legs: Leg) -> tuple[str, ...]:
    """Return the names of the mapped devices that a change of these legs is about."""
    hidden = (hidden_of(site, name, leg.device) for leg in legs)
    return (name, *filter(None, hidden))
