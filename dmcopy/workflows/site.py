"""Which device is which: the mapped devices of an engine at one moment, and what they stand on."""

from __future__ import annotations

import contextlib
import functools
import time
from typing import Final

from dmcopy.errors import BusyError, DeadlineError, DmcopyError, UsageError
from dmcopy.mapper.base import DmInfo, Mapper
from dmcopy.mapper.names import device_name
from dmcopy.table import Table
from dmcopy.workflows.machine import Machine, machine_of

GRACE_SECONDS: Final = 3.0
"""A program that only looks at a device, as udev does after every close, is done by then."""
_PAUSE: Final = 0.05


class Site:
    """The mapped devices of `mapper` as they were when this was made, and the machine under them.

    A `device` is what a table has: a path or major:minor. Sizes are in sectors.
    """

    def __init__(self, mapper: Mapper, machine: Machine | None = None) -> None:
        self.mapper = mapper
        self.machine = machine or machine_of(mapper)
        self.infos: dict[str, DmInfo] = {info.name: info for info in mapper.ls()}
        self._names = {info.devno: name for name, info in self.infos.items() if info.devno}
        for name, info in self.infos.items():
            path = mapper.path(name)
            self._names[path] = name
            if not info.devno:  # no node of it: a path of a file system that leads there
                self._names[self.machine.key(path)] = name

    # Which device it is

    @functools.cached_property
    def _tables(self) -> dict[str, Table]:
        return self.mapper.active_tables()

    def table(self, name: str) -> Table:
        """Return the active table of a device; an empty one of a device that is going."""
        return self._tables.get(name, Table())

    def mapped(self, device: str) -> str:
        """Return the name of the mapped device that a device of a table is, "" if it is none."""
        return self._names.get(device) or self._names.get(self.machine.key(device), "")

    def info(self, device: str) -> DmInfo | None:
        """Return what is known of the mapped device that `device` is, None if it is none."""
        return self.infos.get(self.mapped(device))

    def named(self, word: str) -> str:
        """Return the name of the mapped device that `word` names, or is a path of.

        Raises UsageError when there is none.
        """
        if word in self.infos:
            return word
        name = (self.mapped(word) if "/" in word else "") or device_name(word)
        if name not in self.infos:
            raise UsageError(f"there is no mapped device {word}; 'dmcopy dm ls' lists those here")
        return name

    def path(self, word: str) -> str:
        """Return the path of what a person calls a device: a mapped one's name, or a path."""
        return self.mapper.path(word) if word in self.infos else word

    def key(self, device: str) -> str:
        """Return what is equal for two names of one device."""
        name = self.mapped(device)
        return self.mapper.path(name) if name else self.machine.key(device)

    def label(self, device: str) -> str:
        """Return what a person calls a table's device: 7:1 is /dev/loop1."""
        name = self.mapped(device)
        return self.mapper.path(name) if name else self.machine.label(device)

    def lasting(self, device: str) -> str:
        """Return a name for a device that means the same after a reboot."""
        name = self.mapped(device)
        return self.mapper.path(name) if name else self.machine.stable(self.machine.key(device))

    def stable(self, table: Table) -> Table:
        """Return a table, as the engine printed it, with devices in names that outlive a reboot."""

        def stable(device: str) -> str:
            name = self.mapped(device)
            return self.mapper.path(name) if name else self.machine.stable(device)

        return table.with_devices(stable)

    def for_engine(self, table: Table) -> Table:
        """Return `table` as the engine takes it: mapped devices by number, files as loop devices.

        The node of a mapped device may not be there yet. Raises DmcopyError for a file that has no
        loop device, or several.
        """

        def usable(device: str) -> str:
            info = self.infos.get(self._names.get(device, ""))
            return (info.devno if info else "") or self.machine.usable(device)

        return table.with_devices(usable)

    def same(self, one: Table, other: Table) -> bool:
        """Return whether two tables say the same, whatever names they use for devices."""

        def key(device: str) -> str:
            name = self.mapped(device)
            try:
                return self.mapper.path(name) if name else self.key(self.machine.usable(device))
            except DmcopyError:  # a file without a loop device: no table has it
                return device

        first, second = (table.canonical().with_devices(key) for table in (one, other))
        return first == second

    # What it is like, and who has it

    def sectors(self, device: str) -> int:
        """Return the size of a device. Raises UsageError where there is none, DeviceError."""
        name = self.mapped(device)
        return self.table(name).length if name else self.machine.sectors(device)

    def holders(self, device: str) -> list[str]:
        """Return who uses a device, one phrase each.

        A process that merely has it open is none: udev's rules do that all the time.
        """
        info = self.info(device)
        if info is not None and info.number is None:  # no kernel knows of it
            return ["a user that cannot be named"] if info.open_count else []
        found = self.machine.holders(device)
        users = [str(holder) for holder in found if holder.kind != "process"]
        if info is not None:  # which no kernel knows of where the devices are served
            path = self.mapper.path(info.name)
            users += [f"the mapped device {one.name}" for one in self.infos.values()
                      if path in one.deps]  # fmt: skip
        return users

    def check_unused(self, device: str) -> None:
        """Raise BusyError, naming the holder, if `device` is mounted, mapped or in use otherwise.

        Raises DeviceError where there is no such device.
        """
        found = self.holders(device)
        if found:
            raise BusyError(device, found, "give one that is not used")

    def check_content(self, device: str, *, force: bool) -> None:
        """Raise UsageError if something is on a device that is to be overwritten, unless `force`.

        A file system of a leg that there was, too: it may be the one that is still wanted.
        """
        found = "" if force else self.machine.content(device)
        if found:
            raise UsageError(f"{device} has {found} on it: --force overwrites it")

    def check_closed(self, name: str, hint: str) -> None:
        """Raise BusyError when a mapped device is open for longer than a moment."""
        deadline = time.monotonic() + GRACE_SECONDS
        while self.mapper.info(name).open_count:
            if time.monotonic() > deadline:
                users: list[str] = []
                with contextlib.suppress(DmcopyError):  # its node may not be there
                    users = [str(user) for user in self.machine.holders(self.mapper.path(name))]
                raise BusyError(name, users, hint)
            time.sleep(_PAUSE)


def pause(mapper: Mapper, name: str, seconds: float) -> None:
    """Let time pass, for `seconds` or until the device has an event."""
    with contextlib.suppress(DeadlineError):
        mapper.wait(name, mapper.info(name).events, timeout=seconds)
