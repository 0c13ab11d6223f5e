"""What the mirror workflows must know of devices: which is which, their sizes, who has them."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from typing import Final

from dmcopy.block import BlockDevice, content, holders
from dmcopy.errors import BusyError, UsageError
from dmcopy.mapper.base import PREFIX, DeviceInfo, Mapper
from dmcopy.mapper.names import device_name
from dmcopy.table import Error, Linear, Table
from dmcopy.table.target import Leg

_NUMBER: Final = re.compile(r"\d+:\d+")


def identity(device: str) -> str:
    """Return the same text for all names of a device: its number, or the real path of a file."""
    if _NUMBER.fullmatch(device):
        return device
    with contextlib.suppress(OSError, ValueError):
        found = os.stat(device)
        if stat.S_ISBLK(found.st_mode):
            return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    return os.path.realpath(device)


def same_table(one: Table, other: Table) -> bool:
    """Return whether two tables say the same, whatever names they use for the devices."""
    first, second = (table.canonical().with_devices(identity) for table in (one, other))
    return first == second


def openable(device: str) -> str:
    """Return a path for a device of a table, which may be a number."""
    return f"/dev/block/{device}" if _NUMBER.fullmatch(device) else device


class Devices:
    """The mapped devices of `mapper` as they were when this was made, and what is under them."""

    def __init__(self, mapper: Mapper) -> None:
        self.mapper = mapper
        self.by_name = {info.name: info for info in mapper.ls()}
        self._by_identity: dict[str, DeviceInfo] = {}
        for info in self.by_name.values():
            path = mapper.path(info.name)
            self._by_identity[info.devno or identity(path)] = info
            self._by_identity.setdefault(os.path.realpath(path), info)

    def mapped(self, device: str) -> DeviceInfo | None:
        """Return the mapped device that a table's `device` is, None if it is none."""
        return self._by_identity.get(identity(device))

    def named(self, word: str) -> DeviceInfo:
        """Return the mapped device that `word` names, or is a path of. Raises UsageError."""
        found = self.by_name.get(word) or (self.mapped(word) if "/" in word else None)
        found = found or self.by_name.get(device_name(word))
        if found is None:
            raise UsageError(f"there is no mapped device {word}; 'dmcopy dm ls' lists those here")
        return found

    def label(self, device: str) -> str:
        """Return what a person calls a table's device: 7:1 is /dev/loop1."""
        info = self.mapped(device)
        if info is not None:
            return self.mapper.path(info.name)
        if not _NUMBER.fullmatch(device):
            return device
        node = os.path.basename(os.path.realpath(f"/sys/dev/block/{device}"))
        return device if node == device else f"/dev/{node.replace('!', '/')}"

    def for_engine(self, table: Table) -> Table:
        """Return `table` with mapped devices as numbers: their nodes may not be there yet."""
        numbers = {
            self.mapper.path(info.name): info.devno for info in self.by_name.values() if info.devno
        }
        return table.with_devices(lambda device: numbers.get(device, device))

    def sectors(self, device: str) -> int:
        """Return the size of a device, in sectors. Raises UsageError where there is none."""
        info = self.mapped(device)
        if info is not None:
            return self.mapper.table(info.name).length
        with BlockDevice.open(openable(device)) as opened:
            return opened.sectors

    def check_unused(self, device: str) -> None:
        """Raise BusyError, naming the holder, if `device` is mounted, mapped or in use otherwise.

        A process that merely has it open is not in the way: udev's rules do that all the time.
        """
        info = self.mapped(device)
        if info is not None and info.number is None:  # no kernel knows of it
            if info.open_count:
                raise BusyError(device, ())
            return
        found = [holder for holder in holders.who(openable(device)) if holder.kind != "process"]
        if found:
            raise BusyError(device, [str(holder) for holder in found], "give one that is not used")

    def check_content(self, device: str, *, force: bool) -> None:
        """Raise UsageError if something is on a device that is to be overwritten, unless `force`.

        A file system of a leg that there was, too: it may be the one that is still wanted.
        """
        found = "" if force else content.describe(openable(device))
        if found:
            raise UsageError(f"{device} has {found} on it: --force overwrites it")

    def is_ours(self, device: str) -> bool:
        """Return whether `device` is a mapped one that dmcopy made; its UUID tells."""
        info = self.mapped(device)
        if info is None:
            return False
        return info.number is None or info.uuid.startswith(PREFIX.upper())

    def in_drill(self, device: str) -> bool:
        """Return whether `device` is a leg that 'mirror fail' has made to fail."""
        info = self.mapped(device)
        if info is None or not self.is_ours(device):
            return False
        lines = self.mapper.table(info.name).lines
        return bool(lines) and all(isinstance(line.target, Error) for line in lines)

    def new_hidden(self, name: str) -> str:
        """Return a free name for a device between the mirror `name` and a leg: lvm2's for such."""
        number = 0
        while f"{name}_mimage_{number}" in self.by_name:
            number += 1
        return f"{name}_mimage_{number}"

    def hidden(self, name: str, device: str) -> str:
        """Return the name of `device` if it is one that `new_hidden` named for `name`, else ""."""
        info = self.mapped(device)
        if info is None or not self.is_ours(device):
            return ""
        return info.name if re.fullmatch(re.escape(name) + r"_mimage_\d+", info.name) else ""

    def whole(self, name: str, leg: Leg, length: int) -> Table:
        """Return the table that makes a device of one leg of `name`, whatever is in between."""
        hidden = self.hidden(name, leg.device)
        if hidden and not leg.offset:
            found = self.mapper.table(hidden)
            if found.length == length:
                return found
        return Table.of(length, Linear(leg.device, leg.offset))
