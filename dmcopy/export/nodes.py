"""The nodes of a device server's devices: what other programs open, by the devices' names.

As root a device is a block device, /dev/dmcopy/NAME, a link to a ublk or nbd device, which the next
server can take over when this one is killed, or else to a loop device over a file of FUSE;
where the kernel has no device-mapper there is /dev/mapper/NAME, too, which scripts expect.
For others, and where there is neither, it is a file, NAME in the runtime folder, and an
NBD export without a name at the socket NAME.nbd beside it; where there is no FUSE, that alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from dataclasses import dataclass, field
from typing import Final

from dmcopy.block import file_mounts
from dmcopy.block.devno import block_devno, openable, split_devno
from dmcopy.block.mounts import mount_of
from dmcopy.errors import BusyError, DeviceError, raise_passing
from dmcopy.export.base import FrontEnd, Place
from dmcopy.export.fuse.files import FuseFiles
from dmcopy.export.lasting import SECONDS, LastingDevices
from dmcopy.export.loop import LoopDevices
from dmcopy.export.nbd.devices import NbdDevices
from dmcopy.export.nbd.server import NbdServer
from dmcopy.export.ublk.devices import UblkDevices
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device
from dmcopy.ledger import Ledger
from dmcopy.mapper.base import note_failure
from dmcopy.mapper.control import has_driver
from dmcopy.mapper.names import mangle
from dmcopy.mapper.own import node_path
from dmcopy.mapper.waiting import drive
from dmcopy.runtime import mapper_folder, nodes_folder, runtime_folder

_LASTING: Final[tuple[type[LastingDevices], ...]] = (UblkDevices, NbdDevices)
"""Whose devices outlive a killed server, best first."""


@dataclass(frozen=True)
class _Link:
    path: str
    to: str
    entry: str


@dataclass
class _Node:
    device: Device
    front_ends: list[FrontEnd]
    key: str
    path: str = ""
    links: list[_Link] = field(default_factory=list)
    number: tuple[int, int] | None = None
    source: str = ""
    sectors: int = 0
    read_only: bool = False
    mark: str = ""


class Nodes:
    """The nodes of devices on `reactor`, from `add` to `remove`. They are in `ledger`.

    Methods are called on the reactor's thread, outside of callbacks.
    """

    def __init__(self, reactor: Reactor, ledger: Ledger) -> None:
        self.reactor = reactor
        self.ledger = ledger
        self._lasting = next((kind for kind in _LASTING if not kind.why_not()), None)
        self.as_blocks = self._lasting is not None or not LoopDevices.why_not()
        self._folders = [nodes_folder()]
        if self.as_blocks and mapper_folder() and not has_driver():
            self._folders.append(mapper_folder())
        self._nodes: dict[str, _Node] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._nodes

    def path(self, name: str) -> str:
        """Return what a device is opened by, whether it is there yet or not."""
        return node_path(name)

    def number(self, name: str) -> tuple[int, int] | None:
        """Return the number of a device's node, None where it has none."""
        node = self._nodes.get(name)
        return node.number if node else None

    def named(self, path: str) -> str:
        """Return the name of the device whose node or file is at `path`, "" if it is none's.

        Whatever the path is, no file is asked for it: to answer, this very process would be needed.
        """
        try:
            fd = os.open(openable(path), os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise_passing(error)
            return ""
        try:
            mount = mount_of(fd)
            source = mount.source if mount else ""
            is_served = source.startswith(file_mounts.SOURCE_PREFIX)
            number = None if is_served else block_devno(os.fstat(fd))
        finally:
            os.close(fd)
        for name, node in self._nodes.items():
            if is_served and node.source == source:
                return name
            if number is not None and node.number == number:
                return name
        return ""

    def mark(self, name: str) -> str:
        """Return the mark by which the next server finds a device's node, "" where it cannot."""
        return self._nodes[name].mark if name in self._nodes else ""

    def add(self, name: str, device: Device, *, left: str = "") -> None:
        """Make the node of a device. All or nothing; raises as `FrontEnd.add`.

        `left`: the mark of the one that a killed server had, which is taken over.
        """
        drive(self.reactor, self.adding(name, device, left=left), SECONDS)

    async def adding(self, name: str, device: Device, *, left: str = "") -> None:
        """Do the same as `add`, as a change: other devices need not wait for a slow one."""
        # The file below a block device has a name of its own: the device's may change, and a
        # killed server's may be there still.
        key = f"device-{secrets.token_hex(6)}" if self.as_blocks else mangle(name)
        node = _Node(device, [], key, sectors=device.sectors, read_only=device.read_only)
        try:
            await self._serve(node, name, left)
        except BaseException as error:
            note_failure(error, lambda: self._close(node))
            raise
        self._nodes[name] = node

    async def _serve(self, node: _Node, name: str, left: str) -> None:
        if self.as_blocks:
            if self._lasting is not None:
                lasting = self._lasting(self.reactor, ledger=self.ledger, recoverable=True)
                node.front_ends.append(lasting)
                node.path = await lasting.adding(node.key, node.device, left=left)
                node.mark = lasting.mark(node.key)
            else:
                loops = LoopDevices(self.reactor, ledger=self.ledger)
                node.front_ends.append(loops)
                node.path = await loops.adding(node.key, node.device)
                node.source = _source(node)
            node.number = split_devno(os.stat(node.path).st_rdev)
            self._link(node, name)
            return
        try:
            self._serve_files(node, name)
        except BusyError as error:
            hint = "give the device another name, or end what is there"
            raise BusyError(error.path, error.holders, hint) from None

    def _serve_files(self, node: _Node, name: str) -> None:
        if not FuseFiles.why_not():
            files = FuseFiles(self.reactor, ledger=self.ledger)
            node.front_ends.append(files)
            node.path = files.add(node.key, node.device)
            node.source = _source(node)
        socket = str(runtime_folder() / f"{mangle(name)}.nbd")
        exports = NbdServer(self.reactor, Place(socket=socket))
        node.front_ends.append(exports)
        exports.add(node.key, node.device)

    async def check_unused(self, name: str) -> None:
        """Raise BusyError naming what is mounted or open. A file tells only when it is removed."""
        for front_end in self._nodes[name].front_ends:
            await front_end.check_unused(self._nodes[name].key)

    def remove(self, name: str) -> None:
        """Remove a device's node. Raises BusyError naming what is mounted or open."""
        drive(self.reactor, self.removing(name), SECONDS)

    async def removing(self, name: str) -> None:
        """Do the same as `remove`, as a change."""
        node = self._nodes[name]
        await node.front_ends[0].removing(node.key)
        node.front_ends[0].close()
        del node.front_ends[0], self._nodes[name]
        self._close(node)

    def drop(self, name: str) -> None:
        """Remove a device's node, and cut off its users."""
        node = self._nodes.pop(name, None)
        if node is not None:
            self._close(node)

    def rename(self, name: str, new_name: str) -> None:
        """Give a device's node another name. A file, unlike a block device, must not be open."""
        if name not in self._nodes:
            return
        node = self._nodes[name]
        if self.as_blocks:
            old = node.links
            self._link(node, new_name)
            self._unlink(old)
            self._nodes[new_name] = self._nodes.pop(name)
        else:
            self.remove(name)
            self.add(new_name, node.device)

    def look(self, name: str) -> None:
        """Have a node follow the size of its device, and whether that is read-only.

        A node that is in use stays as it was, and the device itself refuses what it must.
        """
        node = self._nodes[name]
        if node.read_only != node.device.read_only:
            with contextlib.suppress(BusyError):
                self.remove(name)
                self.add(name, node.device)
                return
        if node.sectors != node.device.sectors:
            node.sectors = node.device.sectors
            for front_end in node.front_ends:
                front_end.resized(node.key)
            if node.number:
                node.number = split_devno(os.stat(node.path).st_rdev)

    def let_go(self) -> None:
        """Stop serving the nodes that the next server can take over, and leave them in place."""
        for node in self._nodes.values():
            for front_end in node.front_ends:
                if isinstance(front_end, LastingDevices):
                    front_end.let_go()

    def close(self) -> None:
        """Remove all nodes, and cut off their users."""
        with contextlib.ExitStack() as exits:  # each of them, whatever became of the others
            for name in list(self._nodes):
                exits.callback(self.drop, name)

    def _close(self, node: _Node) -> None:
        with contextlib.ExitStack() as exits:
            exits.callback(self._unlink, node.links)
            for front_end in node.front_ends:
                exits.callback(_cut_off, front_end)

    def _link(self, node: _Node, name: str) -> None:
        """Make the links by which a device is known; all or none."""
        made: list[_Link] = []
        try:
            for folder in self._folders:
                made.append(self._made(folder, node, name))
        except BaseException:
            self._unlink(made)
            raise
        node.links = made

    def _made(self, folder: str, node: _Node, name: str) -> _Link:
        link = f"{folder}/{mangle(name)}"
        try:
            os.makedirs(folder, mode=0o755, exist_ok=True)
            if os.path.lexists(link) and not self._is_left(link):
                raise FileExistsError(errno.EEXIST, "")
            entry = self.ledger.add("link", link, uuid=node.path)
            new = f"{folder}/.{node.key}"
            os.symlink(node.path, new)
            os.replace(new, link)
        except OSError as error:
            raise DeviceError(link, "make a link of it", error.errno or 0) from None
        return _Link(link, node.path, entry)

    def _is_left(self, link: str) -> bool:
        """Return whether it is one of ours, that a killed server left."""
        if not os.path.islink(link):
            return False
        if os.path.dirname(link) == nodes_folder():
            return True
        lost = (one.uuid for one in self.ledger.entries() if (one.kind, one.name) == ("link", link))
        return os.readlink(link) in lost

    def _unlink(self, links: list[_Link]) -> None:
        for link in links:
            with contextlib.suppress(OSError):
                if os.readlink(link.path) == link.to:
                    os.unlink(link.path)
                if os.path.dirname(link.path) == nodes_folder():
                    os.rmdir(nodes_folder())  # if it is empty
            self.ledger.cancel(link.entry)


def _source(node: _Node) -> str:
    return file_mounts.source_of(str(runtime_folder() / node.key))


def _cut_off(front_end: FrontEnd) -> None:
    with contextlib.suppress(BusyError):  # its users have been cut off
        front_end.close()
