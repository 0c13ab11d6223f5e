"""The userspace engine with nodes: each device is served from its first table on."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import replace

from dmcopy.errors import BusyError, DeviceError
from dmcopy.export.kept import restore
from dmcopy.export.nodes import Nodes
from dmcopy.io.reactor import Reactor
from dmcopy.mapper.base import DmInfo, note_failure
from dmcopy.mapper.device import DmDevice
from dmcopy.mapper.userspace import TIMEOUT_SECONDS, UserMapper
from dmcopy.table import ConciseDevice, Table


class ExportedMapper(UserMapper):
    """A `UserMapper` whose devices are `nodes`. A table names one by the path that `path` gives.

    `leaving`: those whose removal was deferred; `remove` tries it again.
    """

    def __init__(self, reactor: Reactor, nodes: Nodes, *, timeout: float = TIMEOUT_SECONDS) -> None:
        super().__init__(reactor, timeout=timeout)
        self.nodes = nodes
        self._devices.own = self._own

    def notice_events(self, notify: Callable[[], object]) -> None:
        """Have `notify` called after each event of a target's."""
        self._devices.notice = notify

    def events(self, name: str) -> Callable[[], int]:
        """Return a function that returns the event number of a device, even after a rename.

        That raises DeviceError once it has gone.
        """
        slot = self._slot(name, "wait for it")

        def number() -> int:
            if self._slots.get(slot.name) is not slot:
                raise DeviceError(name, "wait for it", errno.ENXIO, "it was removed meanwhile")
            return slot.events

        return number

    @property
    def has_devices(self) -> bool:
        return bool(self._slots)

    @property
    def leaving(self) -> list[str]:
        """The devices whose removal was deferred and that no other device uses."""
        slots = self._slots.items()
        return [name for name, slot in slots if slot.deferred_removal and not slot.users]

    def path(self, name: str) -> str:
        return self.nodes.path(name)

    def info(self, name: str) -> DmInfo:
        """Return what is known of a device, with the number of its node; see `Mapper.info`."""
        return replace(super().info(name), number=self.nodes.number(name))

    def create(
        self,
        name: str,
        table: Table | None = None,
        *,
        uuid: str = "",
        readonly: bool = False,
        minor: int | None = None,
        keep: bool = False,
    ) -> DmDevice:
        """Make a device, and its node if it has a table; see `Mapper.create`."""
        del minor, keep
        return self.wait_for(self.creating(name, table, uuid=uuid, readonly=readonly))

    async def creating(
        self, name: str, table: Table | None, *, uuid: str = "", readonly: bool = False
    ) -> DmDevice:
        """Do the same as `create`, as a change."""
        made = super().create(name, uuid=uuid)
        if table is None:
            return made
        try:
            self.load(name, table, readonly=readonly)
            await self.resuming(name)
        except BaseException as error:
            note_failure(error, lambda: self._undo(name))
            raise
        return made

    async def resuming(self, name: str, *, flush: bool = True) -> None:
        await super().resuming(name, flush=flush)
        if name in self.nodes:
            self.nodes.look(name)
        else:
            await self.nodes.adding(name, self.open(name))

    async def removing(self, name: str, *, deferred: bool = False) -> None:
        """Remove a device and its node; see `Mapper.remove`. Raises BusyError for a mounted one."""
        slot = self._slot(name, "remove it")
        if not slot.users and name in self.nodes:
            slot.leaving = True
            first = deferred and not slot.deferred_removal  # of another it may be taken back
            try:
                if slot.mapped.suspended:
                    # What the node still has to write would wait for ever: it fails, as in the
                    # kernel, when the device has gone.
                    await self.nodes.check_unused(name)
                else:
                    await self.nodes.removing(name)
            except BusyError:
                if not (deferred or slot.deferred_removal):
                    raise
                slot.deferred_removal |= first
                return
            finally:
                slot.leaving = False
        await super().removing(name, deferred=deferred)
        if not deferred or not slot.users:
            self.nodes.drop(name)

    def rename(self, name: str, new_name: str) -> None:
        super().rename(name, new_name)
        try:
            self.nodes.rename(name, new_name)
        except BaseException as error:
            note_failure(error, lambda: UserMapper.rename(self, new_name, name))
            raise

    @property
    def marks(self) -> dict[str, str]:
        """The marks by which the next server takes over the nodes of devices, by device name."""
        return {name: mark for name in self._slots if (mark := self.nodes.mark(name))}

    def restore(self, devices: list[ConciseDevice], marks: Mapping[str, str]) -> None:
        """Make the devices that another server had, then their nodes, see `marks`.

        All or nothing: where that fails, another server can still take the nodes over.
        """
        restore(self, devices)
        try:
            for info in self.ls():
                if info.live:
                    left = marks.get(info.name, "")
                    self.nodes.add(info.name, self.open(info.name), left=left)
        except BaseException as error:
            self.nodes.let_go()
            note_failure(error, self.close)
            raise

    def close(self) -> None:
        """Remove every device; its users are cut off."""
        for info in self.ls():
            if info.suspended and info.live and not info.inactive:
                self.resume(info.name)
        self.nodes.close()
        super().close()

    def _own(self, path: str) -> str:
        name = self.nodes.named(path)
        return self.path(name) if name else path

    def _undo(self, name: str) -> None:
        self.nodes.drop(name)
        self.wait_for(super().removing(name))
