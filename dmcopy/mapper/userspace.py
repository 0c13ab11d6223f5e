"""dmcopy's own engine: `Mapper` over userspace targets. No root, no kernel driver.

Its devices live in this process and end with it. They are opened with `UserMapper.open`; a table
names them by the path that `path` gives, `/dev/mapper/NAME`, so that the same line runs on the
kernel. Every other path is a block device or a plain file, claimed when a target writes to it.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from dmcopy.errors import BusyError, DeadlineError, DeviceError, DmcopyError, UsageError
from dmcopy.io.reactor import Reactor
from dmcopy.mapper import names
from dmcopy.mapper.base import DmInfo, Mapper, Version, check_name
from dmcopy.mapper.device import DmDevice
from dmcopy.mapper.host import OpenDevice, Slot, UserDevices, label, refused
from dmcopy.mapper.mapped import ActiveTable, MappedDevice
from dmcopy.mapper.waiting import Change, Until, drive
from dmcopy.status import StatusLine, parse_status
from dmcopy.table import Table, TableLine
from dmcopy.targets import TARGETS
from dmcopy.targets.base import Target

TIMEOUT_SECONDS = 30.0
NODES = "/dev/mapper/"

_T = TypeVar("_T")


class UserMapper(Mapper):
    """The userspace engine, on `reactor`, by default one of its own on the calling thread.

    `timeout`, in seconds, bounds every wait for I/O of a call. `open_device` opens what is not a
    device of this engine; by default a block device or plain file. Use it as a context manager, or
    `close` it: devices that are left are removed, top down.

    Only the reactor's thread may call it. A reactor of the caller's must be made with
    `stacked=True`.
    """

    def __init__(
        self,
        reactor: Reactor | None = None,
        *,
        open_device: OpenDevice | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self._owns_reactor = reactor is None
        self.reactor = reactor or Reactor(stacked=True)
        if not self.reactor.stacked:
            raise UsageError("a userspace engine needs a reactor made with stacked=True")
        self._devices = UserDevices(self.reactor, open_device, timeout, self.remove)
        self._slots = self._devices.slots

    def close(self) -> None:
        """Remove every device, those above others first, and close the reactor if it is our own.

        What cannot be removed, because its I/O does not end, is left with all that is below it. The
        error is raised, with others as notes, when everything else is gone; once the I/O can end
        it can be closed again.
        """
        errors: list[DmcopyError] = []
        left: set[Slot] = set()
        while free := [
            slot for slot in self._slots.values() if not slot.users and slot not in left
        ]:
            for slot in free:
                try:
                    self.remove(slot.name)
                except DmcopyError as error:
                    errors.append(error)
                    left.add(slot)
        if errors:
            first, *others = errors
            for other in others:
                first.add_note(f"and then: {other}")
            raise first
        if self._owns_reactor:
            self.reactor.close()

    def open(self, name: str) -> MappedDevice:
        """Return the device itself; see `Mapper.open`. There is nothing to close."""
        return self._slot(name, "open it").mapped

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
        """Make a device; see `Mapper.create`. `minor` and `keep` mean nothing here."""
        del minor, keep
        check_name(name)
        names.checked_uuid(uuid)
        self._refuse_taken(name, "create it", name, uuid)
        slot = self._new_slot(name, uuid)
        self._slots[name] = slot
        try:
            if table is not None:
                self.load(name, table, readonly=readonly)
                self.resume(name)
        except BaseException:
            self._drop(slot)
            raise
        return DmDevice(self, name)

    def load(self, name: str, table: Table, *, readonly: bool = False) -> None:
        """Load a table beside the active one; see `Mapper.load`.

        Whether the device is read-only is the active table's to say, not the first one's.
        """
        slot = self._slot(name, "load a table")
        table.check()
        loaded = self._devices.construct(slot, table, readonly=readonly)
        old, slot.loaded = slot.loaded, loaded
        slot.retire(old)

    def clear(self, name: str) -> None:
        slot = self._slot(name, "clear its table")
        old, slot.loaded = slot.loaded, None
        slot.retire(old)

    def suspend(self, name: str, *, flush: bool = True, lockfs: bool = True) -> None:
        """Hold new I/O; see `Mapper.suspend`. There is no file system to freeze: no `lockfs`."""
        del lockfs
        self.wait_for(self.suspending(name, flush=flush))

    async def suspending(self, name: str, *, flush: bool = True) -> None:
        """Hold new I/O, once what is in flight has ended. Ended before that, it holds none."""
        slot = self._slot(name, "suspend it")
        mapped = slot.mapped
        if mapped.suspended:
            return
        targets = mapped.active.targets if mapped.active else []
        mapped.noflush = not flush
        stopped: list[Target] = []
        holding = False
        try:
            for target in targets:
                target.presuspend()
                stopped.append(target)
            mapped.hold()
            holding = True
            await Until(lambda: not mapped.in_flight, f"the I/O in flight on {name}")
        except BaseException:
            mapped.noflush = False
            for target in stopped:
                target.presuspend_undo()
            if holding:
                mapped.release()
            raise
        mapped.noflush = False
        mapped.suspended = True
        with contextlib.ExitStack() as exits:
            for target in reversed(targets):  # the first one first, and all even if one fails
                exits.callback(target.postsuspend)

    def resume(self, name: str, *, flush: bool = True, lockfs: bool = True) -> None:
        del lockfs
        self.wait_for(self.resuming(name, flush=flush))

    async def resuming(self, name: str, *, flush: bool = True) -> None:
        """Let I/O continue, with the table that is loaded by the time that the device is suspended.

        As in the kernel (do_resume in dm-ioctl.c), a loaded table is active, and the one before it
        gone, even when it then cannot be resumed.
        """
        slot = self._slot(name, "resume it")
        mapped = slot.mapped
        old = None
        if slot.loaded is not None and not mapped.suspended:
            await self.suspending(name, flush=flush)
        if slot.loaded is not None:
            old, loaded, slot.loaded = mapped.active, slot.loaded, None
            mapped.activate(loaded)
        elif mapped.active is None:
            raise DeviceError(name, "resume it", errno.EINVAL, "it has no table")
        try:
            if mapped.suspended:
                self._run(slot)
        finally:
            slot.retire(old)

    def remove(self, name: str, *, deferred: bool = False, timeout: float | None = None) -> None:
        """Remove a device; see `Mapper.remove`. I/O that waits for it ends with EIO."""
        del timeout
        self.wait_for(self.removing(name, deferred=deferred))

    async def removing(self, name: str, *, deferred: bool = False) -> None:
        """Remove a device, once what is in flight has ended. No table can use it meanwhile."""
        slot = self._slot(name, "remove it")
        if slot.users:
            if deferred:
                slot.deferred_removal = True
                return
            raise BusyError(name, [f"the mapped device {user.name}" for user in slot.users])
        slot.leaving = True
        try:
            if not slot.mapped.suspended:
                await self.suspending(name, flush=False)
            self._drop(slot)
        except BaseException:
            slot.leaving = False
            raise

    def rename(self, name: str, new_name: str) -> None:
        check_name(new_name)
        slot = self._slot(name, "rename it")
        self._refuse_taken(name, "rename it", new_name)
        self._slots[new_name] = self._slots.pop(name)
        slot.mapped.name, slot.mapped.path = new_name, self.path(new_name)
        slot.events += slot.mapped.active is not None  # dm_hash_rename in dm-ioctl.c

    def set_uuid(self, name: str, uuid: str) -> None:
        names.checked_uuid(uuid)
        slot = self._slot(name, "set its UUID")
        if having := [one.name for one in self._slots.values() if uuid and one.uuid == uuid]:
            hint = f"{having[0]} has the UUID {uuid} already"
            raise DeviceError(name, "set its UUID", errno.EBUSY, hint)
        if slot.uuid:
            raise DeviceError(name, "set its UUID", errno.EINVAL, "it has one already")
        slot.uuid = uuid
        slot.events += slot.mapped.active is not None  # dm_hash_rename in dm-ioctl.c

    def ls(self) -> list[DmInfo]:
        return [self.info(name) for name in sorted(self._slots)]

    def info(self, name: str) -> DmInfo:
        slot = self._slot(name, "look at it")
        mapped = slot.mapped
        return DmInfo(
            name=name,
            uuid=slot.uuid,
            open_count=len(slot.users),
            segments=len(mapped.active.targets) if mapped.active else 0,
            events=slot.events,
            suspended=mapped.suspended,
            readonly=mapped.read_only,
            live=mapped.active is not None,
            inactive=slot.loaded is not None,
            deferred=slot.deferred_removal,
            deps=self._deps(slot),
        )

    def table(self, name: str, *, inactive: bool = False) -> Table:
        slot = self._slot(name, "read its table")
        table = slot.loaded if inactive else slot.mapped.active
        if table is None:
            return Table(())
        lines = (TableLine(one.begin, one.length, one.table()) for one in table.targets)
        return Table(tuple(lines)).with_devices(partial(_label, table))

    def status(self, name: str, *, flush: bool = True) -> tuple[StatusLine, ...]:
        del flush
        slot = self._slot(name, "read its status")
        targets = slot.mapped.active.targets if slot.mapped.active else []
        found = []
        for target in targets:
            with refused(name, "read its status", target.name):
                status = parse_status(target.name, target.status())
            found.append(StatusLine(target.begin, target.length, target.name, status))
        return tuple(found)

    def message(self, name: str, *words: str, sector: int = 0) -> str:
        slot = self._slot(name, "send it a message")
        table = slot.mapped.active
        if not words:
            raise DeviceError(name, "send it a message", errno.EINVAL, "the message is empty")
        if words[0].lower() == "@cancel_deferred_remove":  # message_for_md in dm-ioctl.c
            if len(words) > 1:
                hint = f"{words[0]} has no words of its own"
                raise DeviceError(name, "send it a message", errno.EINVAL, hint)
            slot.deferred_removal = False
            return ""
        if words[0].lower().startswith("@stats_"):
            hint = "the userspace engine counts no I/O"
            raise DeviceError(name, "send it a message", errno.EOPNOTSUPP, hint)
        if table is None or not 0 <= sector < table.sectors:
            hint = f"no target at sector {sector}"
            raise DeviceError(name, "send it a message", errno.EINVAL, hint)
        target = table.find(sector)
        with refused(name, "send it a message", target.name):
            return target.message(words)

    def wait(self, name: str, event: int, *, timeout: float) -> int:
        slot = self._slot(name, "wait for it")
        try:
            self.reactor.run_until(lambda: slot.events != event, timeout)
        except DeadlineError:
            text = f"{name}: no event after number {event} within {timeout:g} s"
            raise DeadlineError(text) from None
        return slot.events

    def deps(self, name: str) -> tuple[str, ...]:
        """Return the devices under a device: major:minor, or the path of what has no number."""
        return self._deps(self._slot(name, "read its dependencies"))

    def targets(self) -> dict[str, Version]:
        return {name: Version(*cls.version) for name, cls in TARGETS.items()}

    def sleep(self, seconds: float) -> None:
        with contextlib.suppress(DeadlineError):
            self.reactor.run_until(lambda: False, seconds)

    def path(self, name: str) -> str:
        """Return the path by which tables name a device: no such node is there."""
        return NODES + names.mangle(name)

    def module(self, cls: Callable[[], _T]) -> _T:
        """Return what stands for a kernel module in this engine: its parameters can be set there.

        Such as `module(SnapshotModule).copy_throttle.percent = 50`, for the targets made after it.
        """
        return self._devices.module(cls)

    def refusal(self, table: Table) -> str:
        probe = self._new_slot("dmcopy-try")
        try:
            table.check()
            self._devices.construct(probe, table, readonly=False).destroy()
        except (UsageError, DeviceError, BusyError) as error:
            return str(error)
        return ""

    def wait_for(self, change: Change[_T]) -> _T:
        """Return what a change comes to, and do nothing else meanwhile."""
        return drive(self.reactor, change, self._devices.timeout)

    def _new_slot(self, name: str, uuid: str = "") -> Slot:
        timeout = self._devices.timeout
        return Slot(MappedDevice(self, name, self.path(name), self.reactor, timeout), uuid)

    def _slot(self, name: str, action: str) -> Slot:
        check_name(name)
        if name not in self._slots:
            raise DeviceError(name, action, errno.ENXIO)
        return self._slots[name]

    def _refuse_taken(self, name: str, action: str, new_name: str, uuid: str = "") -> None:
        """Raise DeviceError (EBUSY) if a device has this name, or this UUID if it is one."""
        if new_name in self._slots or any(
            uuid and uuid == one.uuid for one in self._slots.values()
        ):
            hint = "a mapped device has this name or UUID already"
            raise DeviceError(name, action, errno.EBUSY, hint)

    def _run(self, slot: Slot) -> None:
        """Resume the targets of the active table, then let the bios go."""
        mapped = slot.mapped
        assert mapped.active is not None
        for target in mapped.active.targets:
            with refused(mapped.name, "resume it", target.name):
                target.preresume()
        with contextlib.ExitStack() as undo:
            for target in mapped.active.targets:
                with refused(mapped.name, "resume it", target.name):
                    target.resume()
                undo.callback(target.postsuspend)
                undo.callback(target.presuspend)
            undo.pop_all()
        mapped.suspended = False
        mapped.release()

    def _drop(self, slot: Slot) -> None:
        """Forget a device that is suspended, or was never resumed. Raises DeadlineError."""
        loaded, slot.loaded = slot.loaded, None
        table = slot.mapped.active
        slot.mapped.activate(None)
        slot.retire(loaded, table)
        del self._slots[slot.name]
        slot.mapped.release()  # I/O that still waits for it ends with EIO

    def _deps(self, slot: Slot) -> tuple[str, ...]:
        table = slot.mapped.active
        if table is None:
            return ()
        words = (word for target in table.targets for word in target.value.devices)
        return tuple(dict.fromkeys(_label(table, word) for word in words))


def _label(table: ActiveTable, word: str) -> str:
    """Return the name that a device has now which a line of `table` calls `word`."""
    device = table.opened.get(word)
    return word if device is None else label(device, word)
