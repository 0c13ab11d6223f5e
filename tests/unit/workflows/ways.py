"""What may happen to the devices of an interrupted workflow, and what leads out of it."""

from __future__ import annotations

import re
from collections.abc import Callable

from dmcopy.errors import DmcopyError
from dmcopy.table import Table
from dmcopy.workflows.session import Session
from dmcopy.workflows.snapshot import merge

from .fake import FakeMapper

ORDER = ("merge", "finish", "undo", "forget")
Happening = Callable[[FakeMapper], list[str]]
"""Changes the devices; returns the names of what is another program's by now."""


def there(fake: FakeMapper) -> list[str]:
    """Nothing happens to the devices."""
    del fake
    return []


def gone(fake: FakeMapper) -> list[str]:
    """A user removes all devices by hand."""
    fake.devices.clear()
    return []


def without(name: str) -> Happening:
    """A user removes one device."""

    def remove(fake: FakeMapper) -> list[str]:
        if not fake.users(name):
            fake.devices.pop(name, None)
        return []

    return remove


def other(name: str, theirs: Table) -> Happening:
    """A user removes a device, and makes one of that name."""

    def change(fake: FakeMapper) -> list[str]:
        if fake.users(name):
            return []
        fake.replace(name, theirs)
        return [name]

    return change


def leave(process: Callable[[], Session], verb: str) -> list[str]:
    """Do what the sentences say, a verb once and forget last, until there is no record."""
    tried: list[str] = []
    while records := process().journal.records():
        (record,) = records
        tried.append(verb)
        said = ""
        try:
            if verb == "merge":
                merge(process(), record.name)
            else:
                getattr(process(), verb)(record.noun, record.name)
        except DmcopyError as error:
            said = "\n".join([str(error), *getattr(error, "__notes__", ())])
        if not process().journal.records():
            failed = record.noun == "mirror" and "failed" in said
            assert not said or "was taken back" in said or failed, said
            break
        verbs = "|".join(ORDER)
        ways = {*re.findall(rf"'dmcopy {record.noun} ({verbs}) {record.name}'", said)} - {*tried}
        assert ways, f"no way out is named after {tried}: {said}"
        verb = min(ways, key=ORDER.index)
    return tried
