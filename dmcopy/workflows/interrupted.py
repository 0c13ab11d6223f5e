"""The ends of an interrupted workflow that every noun has: who may end it, and giving it up."""

from __future__ import annotations

from collections.abc import Callable

from dmcopy.errors import BusyError, MetadataError, UsageError
from dmcopy.mapper.base import DmInfo, Mapper
from dmcopy.workflows.journal import Journal
from dmcopy.workflows.record import PlanRecord


def find(journal: Journal, noun: str, name: str) -> PlanRecord:
    """Return the record of an interrupted workflow.

    Raises UsageError when there is none, BusyError when its process is at work, MetadataError when
    it is damaged.
    """
    record = journal.find(noun, name)
    if record is None:
        raise UsageError(f"nothing was interrupted that has to do with a {noun} {name!r}")
    if record.running and record.owner != journal.owner:
        process = record.owner.partition(" ")[0]
        raise BusyError(name, [f"process {process} ({record})"], "it is at work")
    return record


def forget(
    mapper: Mapper,
    journal: Journal,
    noun: str,
    name: str,
    attached: Callable[[str], bool] = lambda _: False,
) -> str:
    """Give the record of a workflow up, without changing a device; return what is left behind.

    A damaged record is put aside. `attached` tells whether a file has a loop device that was made
    for it. Raises UsageError when there is no record, BusyError when its process is at work.
    """
    try:
        record = find(journal, noun, name)
    except MetadataError:
        aside = journal.put_aside(noun, name)
        return (
            f"{name}: its record was damaged, and is {aside} now; which devices it was about is "
            "not known: 'dmcopy dm ls' lists those that are there"
        )
    journal.adopt(record)
    journal.end(record)
    infos = [info for info in mapper.ls() if info.name in record.devices]
    left = [_left(info) for info in infos]
    layout = record.layout
    files = layout.files if layout is not None else ()
    left += [f"a loop device of {file}" for file in files if attached(file)]
    text = f"'{record}' is forgotten, and no device was changed; left are: {', '.join(left)}"
    if not left:
        text = f"'{record}' is forgotten; it leaves no device behind"
    if layout is None or record.verb != "merge":
        return text
    if record.committed:
        text += (
            f"; {layout.origin} is rolled back in part, and what was not merged yet is in the "
            f"store on {layout.store_device}"
        )
    if layout.origin in [info.name for info in infos]:
        text += (
            f"; if it is at work there, '{record}' takes it up again, and once it has failed "
            f"'dmcopy snapshot drop {name}' ends it"
        )
    return text


def _left(info: DmInfo) -> str:
    """Return a phrase for a device that is left: with how to release I/O that waits for it."""
    cures = [f"'dmcopy dm clear {info.name}'"] if info.inactive else []
    cures += [f"'dmcopy dm resume {info.name}'"] if info.suspended else []
    state = "suspended" if info.suspended else "with a table loaded"
    return f"{info.name} ({state}: {', then '.join(cures)})" if cures else info.name
