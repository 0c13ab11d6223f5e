"""dmcopy's own engine: `Mapper` over userspace targets. No root, no kernel driver.

Its devices live in this process and end with it. They are opened with `UserMapper.open`; a table
names them by the path that `path` gives, `/dev/mapper/NAME`, so that the same line runs on the
kernel. Every other path is a block device or a plain file, claimed when a target writes to it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from dmcopy.block import BlockDevice
from dmcopy.errors import BusyError, DeadlineError, DeviceError, UsageError
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device as IoDevice
from dmcopy.mapper import names
from dmcopy.mapper.base import DeviceInfo, Mapper, Version, check_name
from dmcopy.mapper.device import Device
from dmcopy.mapper.mapped import ActiveTable, MappedDevice
from dmcopy.status import StatusLine, parse_status
from dmcopy.table import Table, TableLine
from dmcopy.targets import TARGETS, TargetError
from dmcopy.units import SECTOR_SHIFT

TIMEOUT_SECONDS = 30.0
NODES = "/dev/mapper/"

_T = TypeVar("_T")
OpenDevice = Callable[[str, bool], IoDevice]
"""Opens what a table names: (path, write) → device."""


@dataclass
class _Slot:
    """What the engine keeps of a device beside its I/O."""

    mapped: MappedDevice
    uuid: str
    readonly: bool
    events: int = 0
    users: list[str] = field(default_factory=list)
    loaded: ActiveTable | None = None
    deferred_removal: bool = False


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
        self.timeout = timeout
        self._open_device = open_device or _open_block
        self._slots: dict[str, _Slot] = {}
        self._opened: dict[tuple[str, bool], _Opened] = {}
        self._modules: dict[Any, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove every device, those above others first, and the reactor if it is our own."""
        while self._slots:
            free = [name for name, slot in self._slots.items() if not slot.users]
            for name in free:
                self.remove(name)
        if self._owns_reactor:
            self.reactor.close()

    def open(self, name: str) -> MappedDevice:
        """Return the device itself, for I/O. Raises DeviceError (ENXIO)."""
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
    ) -> Device:
        """Make a device; see `Mapper.create`. `minor` and `keep` mean nothing here."""
        del minor, keep
        check_name(name)
        names.checked_uuid(uuid)
        if name in self._slots or (uuid and uuid in {one.uuid for one in self._slots.values()}):
            hint = "a mapped device has this name or UUID already"
            raise DeviceError(name, "create it", errno.EEXIST, hint)
        mapped = MappedDevice(name, self.path(name), self.reactor)
        self._slots[name] = _Slot(mapped, uuid, readonly)
        try:
            if table is not None:
                self.load(name, table, readonly=readonly)
                self.resume(name)
        except BaseException:
            self._drop(name)
            raise
        return Device(self, name)

    def load(self, name: str, table: Table, *, readonly: bool = False) -> None:
        """Load a table beside the active one; see `Mapper.load`."""
        slot = self._slot(name, "load a table")
        table.check()
        loaded = self._construct(slot, table, readonly or slot.readonly)
        if slot.loaded is not None:
            slot.loaded.destroy()
        slot.loaded = loaded

    def clear(self, name: str) -> None:
        """Drop the loaded table; see `Mapper.clear`."""
        slot = self._slot(name, "clear its table")
        if slot.loaded is not None:
            slot.loaded.destroy()
            slot.loaded = None

    def suspend(self, name: str, *, flush: bool = True, lockfs: bool = True) -> None:
        """Hold new I/O; see `Mapper.suspend`. There is no file system to freeze: no `lockfs`."""
        del lockfs
        slot = self._slot(name, "suspend it")
        mapped = slot.mapped
        if mapped.suspended:
            return
        targets = mapped.table.targets if mapped.table else []
        mapped.noflush = not flush
        for target in targets:
            target.presuspend()
        mapped.hold()
        try:
            self._wait_idle(mapped)
        except DeadlineError:
            mapped.noflush = False
            for target in targets:
                target.presuspend_undo()
            mapped.release()
            raise
        mapped.noflush = False
        mapped.suspended = True
        for target in targets:
            target.postsuspend()

    def resume(self, name: str, *, flush: bool = True, lockfs: bool = True) -> None:
        """Let I/O go on; see `Mapper.resume`.

        As in the kernel (do_resume in dm-ioctl.c), a loaded table is active, and the one before it
        gone, even when it then cannot be resumed.
        """
        slot = self._slot(name, "resume it")
        mapped = slot.mapped
        old = None
        if slot.loaded is not None:
            if not mapped.suspended:
                self.suspend(name, flush=flush, lockfs=lockfs)
            old, loaded, slot.loaded = mapped.table, slot.loaded, None
            mapped.activate(loaded)
        elif mapped.table is None:
            raise DeviceError(name, "resume it", errno.EINVAL, "it has no table")
        try:
            if mapped.suspended:
                self._run(slot)
        finally:
            if old is not None:
                old.destroy()

    def remove(self, name: str, *, deferred: bool = False, timeout: float | None = None) -> None:
        """Remove a device; see `Mapper.remove`. Who waits for I/O on it gets EIO."""
        del timeout
        slot = self._slot(name, "remove it")
        if slot.users:
            if deferred:
                slot.deferred_removal = True
                return
            raise BusyError(name, [f"the mapped device {user}" for user in slot.users])
        if not slot.mapped.suspended:
            self.suspend(name, flush=False)
        self._drop(name)

    def rename(self, name: str, new_name: str) -> None:
        """Give a device another name; see `Mapper.rename`."""
        check_name(new_name)
        slot = self._slot(name, "rename it")
        if new_name in self._slots:
            raise DeviceError(
                name, "rename it", errno.EEXIST, "a mapped device has this name or UUID already"
            )
        self._slots[new_name] = self._slots.pop(name)
        slot.mapped.name, slot.mapped.path = new_name, self.path(new_name)
        slot.events += 1

    def set_uuid(self, name: str, uuid: str) -> None:
        """Give a device a UUID; see `Mapper.set_uuid`."""
        names.checked_uuid(uuid)
        slot = self._slot(name, "set its UUID")
        if slot.uuid:
            raise DeviceError(name, "set its UUID", errno.EINVAL, "it has one already")
        slot.uuid = uuid

    def ls(self) -> list[DeviceInfo]:
        """Return every device of this engine, by name."""
        return [self.info(name) for name in sorted(self._slots)]

    def info(self, name: str) -> DeviceInfo:
        """Return what is known of a device; see `Mapper.info`."""
        slot = self._slot(name, "look at it")
        mapped = slot.mapped
        return DeviceInfo(
            name=name,
            uuid=slot.uuid,
            open_count=len(slot.users),
            segments=len(mapped.table.targets) if mapped.table else 0,
            events=slot.events,
            suspended=mapped.suspended,
            readonly=mapped.read_only if mapped.table else slot.readonly,
            live=mapped.table is not None,
            inactive=slot.loaded is not None,
            deps=self._deps(slot),
        )

    def table(self, name: str, *, inactive: bool = False) -> Table:
        """Return a table; see `Mapper.table`."""
        slot = self._slot(name, "read its table")
        table = slot.loaded if inactive else slot.mapped.table
        targets = table.targets if table else []
        lines = (TableLine(target.begin, target.length, target.table()) for target in targets)
        return Table(tuple(lines)).with_devices(self._label_of)

    def status(self, name: str, *, flush: bool = True) -> tuple[StatusLine, ...]:
        """Return the status of each line; see `Mapper.status`."""
        del flush
        slot = self._slot(name, "read its status")
        targets = slot.mapped.table.targets if slot.mapped.table else []
        return tuple(
            StatusLine(
                target.begin, target.length, target.name, parse_status(target.name, target.status())
            )
            for target in targets
        )

    def message(self, name: str, *words: str, sector: int = 0) -> str:
        """Send a message; see `Mapper.message`."""
        slot = self._slot(name, "send it a message")
        table = slot.mapped.table
        if not words:
            raise DeviceError(name, "send it a message", errno.EINVAL, "the message is empty")
        if table is None or not 0 <= sector < table.sectors:
            hint = f"no target at sector {sector}"
            raise DeviceError(name, "send it a message", errno.EINVAL, hint)
        try:
            return table.find(sector).message(words)
        except TargetError as error:
            raise DeviceError(name, "send it a message", error.errno, error.reason) from error

    def wait(self, name: str, event: int, *, timeout: float) -> int:
        """Wait for an event; see `Mapper.wait`."""
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
        """Return the targets of this engine; see `Mapper.targets`."""
        return {name: Version(*cls.version) for name, cls in TARGETS.items()}

    def path(self, name: str) -> str:
        """Return the path by which tables name a device: no such node is there."""
        return NODES + names.mangle(name)

    def refusal(self, table: Table) -> str:
        """Try a table; see `Mapper.refusal`."""
        name = "dmcopy-try"
        probe = _Slot(MappedDevice(name, self.path(name), self.reactor), "", readonly=False)
        try:
            table.check()
            self._construct(probe, table, readonly=False).destroy()
        except (UsageError, DeviceError, BusyError) as error:
            return str(error)
        return ""

    def open_below(self, slot: _Slot, path: str, write: bool) -> tuple[IoDevice, Callable[[], Any]]:
        """Open a device for a table of `slot`; also return how to give it back."""
        below = self._find_below(path)
        if below is not None:
            if below is slot:
                raise DeviceError(path, "use it in its own table", errno.EINVAL)
            below.users.append(slot.mapped.name)
            return below.mapped, lambda: self._put(below, slot.mapped.name)
        key = _node(path), write
        if key not in self._opened:
            self._opened[key] = _Opened(self._open_device(path, write))
        opened = self._opened[key]
        opened.users += 1
        return opened.device, lambda: self._put_opened(key)

    def event(self, slot: _Slot) -> None:
        """Count an event, and wake who waits for it."""
        slot.events += 1

    def module(self, cls: Callable[[], _T]) -> _T:
        """Return this engine's only object of a class; see `Host.module`."""
        found: _T = self._modules.setdefault(cls, None) or cls()
        self._modules[cls] = found
        return found

    def label(self, device: IoDevice) -> str:
        """Return a device's name in tables and status lines; see `Host.label`."""
        return self._label_of(device.path)

    def wait_idle(self, mapped: MappedDevice) -> None:
        """Wait until nothing is in flight on a device that is held."""
        self._wait_idle(mapped)

    def _slot(self, name: str, action: str) -> _Slot:
        check_name(name)
        if name not in self._slots:
            raise DeviceError(name, action, errno.ENXIO)
        return self._slots[name]

    def _find_below(self, path: str) -> _Slot | None:
        for slot in self._slots.values():
            if slot.mapped.path == path:
                return slot
        return None

    def _construct(self, slot: _Slot, table: Table, readonly: bool) -> ActiveTable:
        active = ActiveTable()
        active.readonly = readonly
        active.sectors = table.length
        host = _Host(self, slot, active)
        try:
            for line in table:
                if line.target_name not in TARGETS:
                    hint = f"the userspace engine has no target '{line.target_name}'"
                    raise DeviceError(slot.mapped.name, "load a table", errno.EINVAL, hint)
                active.targets.append(TARGETS[line.target_name](line, host))
            host.check_areas()
        except TargetError as error:
            active.destroy()
            raise DeviceError(
                slot.mapped.name, "load a table", error.errno, error.reason
            ) from error
        except BaseException:
            active.destroy()
            raise
        return active

    def _run(self, slot: _Slot) -> None:
        """Resume the targets of the active table, then let the bios go."""
        mapped = slot.mapped
        assert mapped.table is not None
        try:
            for target in mapped.table.targets:
                target.preresume()
        except TargetError as error:
            raise DeviceError(mapped.name, "resume it", error.errno, error.reason) from error
        for target in mapped.table.targets:
            target.resume()
        mapped.suspended = False
        mapped.release()

    def _wait_idle(self, mapped: MappedDevice) -> None:
        self.reactor.run_until(
            lambda: not mapped.in_flight, self.timeout, f"the I/O in flight on {mapped.name}"
        )

    def _drop(self, name: str) -> None:
        """Forget a device that is suspended, or was never resumed."""
        slot = self._slots.pop(name)
        table, slot.mapped.table = slot.mapped.table, None
        slot.mapped.release()  # whoever still waits for it gets EIO
        for old in (slot.loaded, table):
            if old is not None:
                old.destroy()

    def _put(self, slot: _Slot, user: str) -> None:
        slot.users.remove(user)
        if slot.deferred_removal and not slot.users:
            self.remove(slot.mapped.name)

    def _put_opened(self, key: tuple[str, bool]) -> None:
        opened = self._opened[key]
        opened.users -= 1
        if not opened.users:
            del self._opened[key]
            _close(opened.device)

    def _label_of(self, path: str) -> str:
        return path if self._find_below(path) else _number(path) or path

    def _deps(self, slot: _Slot) -> tuple[str, ...]:
        table = slot.mapped.table
        targets = table.targets if table else []
        paths = (path for target in targets for path in target.value.devices)
        return tuple(dict.fromkeys(map(self._label_of, paths)))


class _Opened:
    def __init__(self, device: IoDevice) -> None:
        self.device = device
        self.users = 0


class _Host:
    """The `Host` of the targets of one table."""

    def __init__(self, engine: UserMapper, slot: _Slot, table: ActiveTable) -> None:
        self._engine = engine
        self._slot = slot
        self._table = table
        self._areas: list[tuple[IoDevice, int, int]] = []
        self.reactor = engine.reactor
        self.module = engine.module
        self.label = engine.label

    @property
    def name(self) -> str:
        return self._slot.mapped.name

    @property
    def sectors(self) -> int:
        return self._table.sectors

    @property
    def suspended(self) -> bool:
        return self._slot.mapped.suspended

    @property
    def noflush(self) -> bool:
        return self._slot.mapped.noflush

    def open(self, path: str, *, write: bool = True) -> IoDevice:
        write = write and not self._table.readonly
        device, close = self._engine.open_below(self._slot, path, write)
        self._table.closers.append(close)
        return device

    def use(self, device: IoDevice, start: int, count: int) -> None:
        self._areas.append((device, start, count))
        size = max(self._table.logical_block_size, device.logical_block_size)
        self._table.logical_block_size = size

    def event(self) -> None:
        self._engine.event(self._slot)

    def hold(self) -> None:
        self._slot.mapped.hold()
        self._engine.wait_idle(self._slot.mapped)

    def release(self) -> None:
        self._slot.mapped.release()

    def check_areas(self) -> None:
        """Refuse areas that are past their device's end or off its blocks.

        device_area_is_invalid in drivers/md/dm-table.c.
        """
        for device, start, count in self._areas:
            if start + count > device.sectors:
                raise TargetError(
                    f"{device.path} too small for target: start={start}, len={count}, "
                    f"dev_size={device.sectors}"
                )
            if ((start | count) << SECTOR_SHIFT) % device.logical_block_size:
                raise TargetError(
                    f"start={start}, len={count} not aligned to the blocks of {device.path}, "
                    f"{device.logical_block_size} bytes"
                )


def _open_block(path: str, write: bool) -> IoDevice:
    return BlockDevice.open(_node(path), write=write)


def _node(path: str) -> str:
    """Return the real path of a device of a table, which may be written as major:minor."""
    if re.fullmatch(r"\d+:\d+", path):
        path = f"/dev/block/{path}"
    return os.path.realpath(path)


def _close(device: Any) -> None:
    if hasattr(device, "close"):
        device.close()


def _number(path: str) -> str:
    """Return major:minor of a block device's node; empty for what is none."""
    try:
        status = os.stat(_node(path))
    except OSError:
        return ""
    if not stat.S_ISBLK(status.st_mode):
        return ""
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
