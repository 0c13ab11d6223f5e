"""What a workflow asks of the devices under a mapper: sizes, content, who stands on whom.

A mapper knows names and tables, and `Site` which device is which; this is the rest, and the only
place in the workflows that looks at sysfs, opens a device or attaches a file.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import sys
from pathlib import Path
from typing import Final, TextIO

from dmcopy.block import backing, content, holders, loop, sysfs, tools
from dmcopy.block.device import BlockDevice
from dmcopy.block.devno import (
    block_devno,
    devno_text,
    is_devno,
    openable,
    parse_devno,
    split_devno,
)
from dmcopy.block.processes import Identity, identity_at, identity_of
from dmcopy.errors import DeviceError, DmcopyError
from dmcopy.ledger import Ledger
from dmcopy.mapper.base import Mapper
from dmcopy.mapper.dmsetup import ScriptDmsetup
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.names import mangle, unmangle
from dmcopy.mapper.served import ServedMapper
from dmcopy.mapper.served_script import ServedScript
from dmcopy.ondisk.exception_store import StoreHeader
from dmcopy.units import SECTOR_SHIFT, SECTOR_SIZE

_STORE_MAGIC: Final = b"SnAp"
_LOSETUP_SECONDS: Final = 30.0


class Machine:
    """The devices and files of this machine. `ledger` notes the loop devices that are made.

    A `device` is what a table has: a path or major:minor. Sizes are in sectors, blocks in bytes.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def key(self, device: str) -> str:
        """Return what is equal for two names of one thing: major:minor, or a file's real path."""
        if is_devno(device):
            return device
        with contextlib.suppress(OSError, ValueError):
            if number := block_devno(os.stat(device)):
                return devno_text(number)
        return os.path.realpath(device)

    def label(self, device: str) -> str:
        """Return what a person calls a device that is not mapped: 7:1 is /dev/loop1."""
        name = sysfs.name_of(parse_devno(device)) if is_devno(device) else ""
        return sysfs.node(name) if name else device

    def exists(self, device: str) -> bool:
        """Return whether there is anything at a path."""
        return os.path.exists(device)

    def is_file(self, device: str) -> bool:
        """Return whether it is a regular file, which a loop device makes usable."""
        return Path(device).is_file()

    def can_grow(self, device: str) -> bool:
        """Return whether `grow` makes it longer though it needs no loop device."""
        del device
        return False

    def sectors(self, device: str) -> int:
        """Return a device's size. Raises UsageError when there is none, DeviceError."""
        with BlockDevice.open(openable(device), direct=False) as opened:
            return opened.sectors

    def block_size(self, device: str) -> int:
        """Return a device's logical block size; of what is not there, the smallest."""
        try:
            with BlockDevice.open(openable(device), direct=False) as opened:
                return opened.logical_block_size
        except DmcopyError:
            return SECTOR_SIZE

    def claim(self, device: str) -> None:
        """Make sure that it is not in use. Raises BusyError naming the holder, UsageError."""
        with BlockDevice.open(openable(device), write=True, direct=False):
            pass

    def holders(self, device: str) -> list[holders.Holder]:
        """Return who uses it. Raises DeviceError, UsageError for what is not there."""
        return holders.who(os.path.realpath(openable(device)))

    def below(self, device: str) -> set[str]:
        """Return the keys of a device and of all that it stands on, through files too."""
        keys: set[str] = set()
        todo = [self._kernel_name(device)]
        while todo:
            name = todo.pop()
            number = sysfs.devno(name) if name else None
            key = "" if number is None else devno_text(number)
            if not key or key in keys:
                continue
            keys.add(key)
            todo += [*sysfs.slaves(name), sysfs.parent(name)]
            made_of = backing.of(name)
            todo += [_holding(made_of.identity)] if made_of and made_of.identity else []
        return keys

    def content(self, device: str) -> str:
        """Return a phrase for what is on a device, "" where nothing is known."""
        return content.describe(openable(device))

    def has_store(self, device: str) -> bool:
        """Return whether an exception store begins on a device, whatever state it is in."""
        return self._first_sector(device)[:4] == _STORE_MAGIC

    def store(self, device: str) -> StoreHeader | None:
        """Return the header of the exception store on a device; None where there is none.

        Raises StoreError for what only begins like one.
        """
        data = self._first_sector(device)
        return StoreHeader.parse(data) if data[:4] == _STORE_MAGIC else None

    def stable(self, device: str) -> str:
        """Return a name for a device of a table that means the same after a reboot.

        That is /dev/mapper/NAME, a link in /dev/disk/by-id, the file of a loop device (see
        `usable`); else the node, which the kernel may give to another disk.
        """
        if not is_devno(device):
            return device
        name = sysfs.name_of(parse_devno(device))
        mapped = sysfs.read(f"{sysfs.directory(name)}/dm/name")
        if mapped:
            return f"/dev/mapper/{mangle(unmangle(mapped))}"
        file = sysfs.backing_file(name)
        if file and self._loops(file) == [sysfs.node(name)]:
            return file
        links = content.links().get(name, [])
        return next((link for link in links if "/by-id/" in link), sysfs.node(name))

    def usable(self, device: str) -> str:
        """Return what an engine can be given for a device: for a file, its loop device."""
        if not self.is_file(device):
            return device
        found = self._loops(os.path.realpath(device))
        if len(found) != 1:
            many = f"{len(found)} loop devices" if found else "no loop device"
            raise DmcopyError(f"{device}: {many} of it: attach it once (losetup -f {device})")
        return found[0]

    def wipe(self, device: str, count: int) -> None:
        """Zero the first `count` sectors, or less where there are less."""
        with BlockDevice.open(self.usable(device), write=True, direct=False) as opened:
            opened.zero_out(0, min(count, opened.sectors))
            opened.flush()

    def attach(self, file: str) -> None:
        """Make a loop device of a file, which stays; one that there is already is used."""
        real = os.path.realpath(file)
        if self._loops(real):
            return
        device = loop.attach(real, ledger=self.ledger)
        self.ledger.add("loop", device.path, uuid=real, keep=True)
        self.ledger.cancel(device.entry)  # which would have it removed after our end

    def attached(self, file: str) -> bool:
        """Return whether `attach` made a loop device of this file."""
        real = os.path.realpath(file)
        nodes = self._loops(real)
        noted = [(entry.kind, entry.name, entry.uuid) for entry in self.ledger.entries()]
        return any(("loop", node, real) in noted for node in nodes)

    def detach(self, file: str) -> None:
        """Give the loop device back that `attach` made; no other is touched."""
        real = os.path.realpath(file)
        if self.attached(file):
            for node in self._loops(real):
                loop.detach(loop.LoopDevice(node, real))
                self.ledger.drop("loop", node)

    def grow(self, file: str, sectors: int) -> None:
        """Make a file that long, never shorter, and its loop device with it."""
        _lengthen(file, sectors)
        words = ["losetup", "--set-capacity", self.usable(file)]
        done = tools.run(words, timeout=_LOSETUP_SECONDS)
        if done.returncode:
            raise DmcopyError(f"{file}: its loop device did not grow: {done.stderr.strip()}")

    def _first_sector(self, device: str) -> bytes:
        with BlockDevice.open(openable(device), direct=False) as opened:
            return opened.pread(0, 1) if opened.sectors else b""

    def _kernel_name(self, device: str) -> str:
        """Return the kernel's name of a device, or of the one that a file is on."""
        try:
            found = os.stat(openable(device))
        except OSError:
            return ""
        return _holding(identity_of(found))

    def _loops(self, file: str) -> list[str]:
        return [sysfs.node(found.loop) for found in backing.loops_over(identity_at(file))]


class FileMachine(Machine):
    """Devices and files for an engine that uses files as they are, without a loop device."""

    def is_file(self, device: str) -> bool:
        """Return that nothing needs a loop device."""
        del device
        return False

    def can_grow(self, device: str) -> bool:
        return Path(device).is_file()

    def usable(self, device: str) -> str:
        return device

    def grow(self, file: str, sectors: int) -> None:
        _lengthen(file, sectors)


class ScriptMachine(Machine):
    """Prints the commands that would change something, as `ScriptDmsetup` does."""

    def __init__(self, ledger: Ledger, stream: TextIO | None = None) -> None:
        super().__init__(ledger)
        self._stream = stream or sys.stdout
        self._planned: dict[str, str] = {}

    def has_store(self, device: str) -> bool:
        """Return that there will be one when the commands are run: a snapshot has it by then."""
        del device
        return True

    def wipe(self, device: str, count: int) -> None:
        """Print how to zero the first sectors."""
        words = ["dd", "if=/dev/zero", f"of={self.usable(device)}", f"bs={SECTOR_SIZE}"]
        self._print([*words, f"count={count}", "conv=notrunc,fsync"])

    def attach(self, file: str) -> None:
        """Print how to attach a file to what is the first free loop device now."""
        done = tools.run(["losetup", "--find"], timeout=_LOSETUP_SECONDS)
        self._planned[os.path.realpath(file)] = done.stdout.strip()
        self._print(["losetup", done.stdout.strip(), file])

    def detach(self, file: str) -> None:
        """Print how to detach the loop device of a file."""
        if self.attached(file):
            self._print(["losetup", "--detach", self.usable(file)])

    def grow(self, file: str, sectors: int) -> None:
        """Print how to make a file and its loop device longer."""
        self._print(["truncate", f"--size={sectors << SECTOR_SHIFT}", file])
        self._print(["losetup", "--set-capacity", self.usable(file)])

    def usable(self, device: str) -> str:
        """Return the loop device that a file has, or would have."""
        return self._planned.get(os.path.realpath(device)) or super().usable(device)

    def _print(self, words: list[str]) -> None:
        print(shlex.join(words), file=self._stream)


class ScriptFileMachine(ScriptMachine, FileMachine):
    """Prints them for an engine that uses files as they are."""

    def grow(self, file: str, sectors: int) -> None:
        """Print how to make a file longer."""
        self._print(["truncate", f"--size={sectors << SECTOR_SHIFT}", file])


@functools.singledispatch
def machine_of(mapper: Mapper) -> Machine:
    """Return what is under an engine; one whose own devices are no files registers itself here."""
    del mapper
    return FileMachine(Ledger())


@machine_of.register
def _(mapper: KernelMapper) -> Machine:
    script = isinstance(mapper.dmsetup, ScriptDmsetup)
    return ScriptMachine(Ledger()) if script else Machine(mapper.ledger)


@machine_of.register
def _(mapper: ServedMapper) -> Machine:
    script = isinstance(mapper, ServedScript)
    return ScriptFileMachine(Ledger()) if script else FileMachine(Ledger())


def _lengthen(file: str, sectors: int) -> None:
    try:
        if os.stat(file).st_size < sectors << SECTOR_SHIFT:
            os.truncate(file, sectors << SECTOR_SHIFT)
    except OSError as error:
        raise DeviceError(file, "make it longer", error.errno or 0) from error


def _holding(identity: Identity) -> str:
    """Return the kernel's name of a device, or of the one that a file is on."""
    return sysfs.name_of(split_devno(identity[1]))
