"""What userspace targets run in: the engine's devices, what is open below them, its modules."""

from __future__ import annotations

import contextlib
import errno
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

from dmcopy.block import BlockDevice
from dmcopy.block.devno import devno_text, openable
from dmcopy.block.processes import identity_at
from dmcopy.errors import DeviceError, DmcopyError
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device
from dmcopy.mapper.mapped import ActiveTable, MappedDevice, Underlying
from dmcopy.suggest import did_you_mean
from dmcopy.table import Table
from dmcopy.targets import TARGETS, TargetError
from dmcopy.targets.guard import FailedTarget, Guard
from dmcopy.units import SECTOR_SHIFT

_T = TypeVar("_T")
OpenDevice = Callable[[str, bool], Device]
"""Opens what a table names: (path, write) → device."""

_NOT_WRITABLE: Final = {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(eq=False)
class Slot:
    """What the engine keeps of a device beside its I/O.

    `users`: the devices that have it open for a table of theirs, and how many times. They are the
    devices themselves, whatever they are called by now. `leaving`: it is being removed, and can be
    opened no more (dm_lock_for_deletion in dm.c).
    """

    mapped: MappedDevice
    uuid: str = ""
    events: int = 0
    users: Counter[Slot] = field(default_factory=Counter)
    loaded: ActiveTable | None = None
    retired: list[ActiveTable] = field(default_factory=list)
    deferred_removal: bool = False
    leaving: bool = False

    def __post_init__(self) -> None:
        self.below = Underlying(self.mapped)

    @property
    def name(self) -> str:
        return self.mapped.name

    def is_above(self, other: Slot) -> bool:
        """Return whether this is `other`, or its tables lead to it, loaded ones included."""
        return self is other or any(self.is_above(user) for user in other.users)

    def retire(self, *tables: ActiveTable | None) -> None:
        """Destroy tables that are used no more, with those that could not be destroyed before.

        Raises DeadlineError: as long as a table has I/O under way, it has its devices, too.
        """
        self.retired += [table for table in tables if table is not None]
        while self.retired:
            self.retired[0].destroy()
            del self.retired[0]


class UserDevices:
    """The devices of one userspace engine by their names, on one reactor.

    `timeout`, in seconds, bounds a wait for I/O. `notice` is called after an event. `own` returns
    what tables call the device at a path, where that is served from here.
    `removed` is called with the name of a device whose removal was deferred and that is no longer
    in use.
    """

    def __init__(
        self,
        reactor: Reactor,
        open_device: OpenDevice | None,
        timeout: float,
        removed: Callable[[str], object],
    ) -> None:
        self.reactor = reactor
        self.timeout = timeout
        self.slots: dict[str, Slot] = {}
        self._open_device = open_device or _open_block
        self.notice: Callable[[], object] = lambda: None
        self.own: Callable[[str], str] = lambda path: path
        self._removed = removed
        self._opened: dict[tuple[Hashable, bool], _Opened] = {}
        self._modules: dict[Any, Any] = {}

    def construct(self, slot: Slot, table: Table, *, readonly: bool) -> ActiveTable:
        """Make the targets of a table; all or nothing. Raises what opening raises, DeviceError."""
        active = ActiveTable(table.length, readonly=readonly)
        host = TableHost(self, slot, active)
        try:
            for line in table:
                cls = TARGETS.find(line.target_name)
                if cls is None:
                    near = did_you_mean(line.target_name, TARGETS)
                    hint = f"the userspace engine has no target '{line.target_name}'{near}"
                    raise DeviceError(slot.name, "load a table", errno.EINVAL, hint)
                with refused(slot.name, "load a table", line.target_name):
                    active.targets.append(cls(line, host))
                    active.targets[-1].check_discards()
            with refused(slot.name, "load a table"):
                host.check_areas()
        except BaseException:
            active.destroy()
            raise
        return active

    def open(
        self, slot: Slot, path: str, *, write: bool, readonly: bool
    ) -> tuple[Device, Callable[[], object]]:
        """Open a device for a table of `slot`; also return how to give it back.

        That the table is `readonly` says nothing of what its targets write themselves: they can,
        unless the device itself cannot be written.
        """
        below = self.find(path) or self.find(self.own(path))
        if below is not None:
            if below.is_above(slot):
                # 6.12 refuses only a device in its own table (dm_get_device in dm-table.c), 6.1 not
                # even that. Of a ring that they take, no device can be removed (measured on both).
                hint = f"it is {slot.name} itself" if below is slot else f"it is above {slot.name}"
                raise DeviceError(path, "use it in a table", errno.EINVAL, hint)
            if below.leaving:
                raise DeviceError(path, "use it in a table", errno.ENXIO, "it is being removed")
            below.users[slot] += 1
            return below.below, lambda: self._put(below, slot)
        try:
            return self._open_lower(path, write=write)
        except DeviceError as error:
            if not (write and readonly and error.errno in _NOT_WRITABLE):
                raise
            return self._open_lower(path, write=False)

    def find(self, path: str) -> Slot | None:
        """Return the device of this engine that tables call `path`."""
        for slot in self.slots.values():
            if slot.mapped.path == path:
                return slot
        return None

    def module(self, cls: Callable[[], _T]) -> _T:
        if cls not in self._modules:
            self._modules[cls] = cls()
        found: _T = self._modules[cls]
        return found

    def wait_idle(self, mapped: MappedDevice) -> None:
        """Wait until nothing is in flight on a device that is held."""
        self.reactor.run_until(
            lambda: not mapped.in_flight, self.timeout, f"the I/O in flight on {mapped.name}"
        )

    def _open_lower(self, path: str, *, write: bool) -> tuple[Device, Callable[[], object]]:
        """Open what is not a device of this engine: once, by whatever names tables have for it."""
        key = identity_at(_node(path)) or path, write
        if key not in self._opened:
            self._opened[key] = _Opened(self._open_device(path, write))
        opened = self._opened[key]
        opened.users += 1
        if isinstance(opened.device, BlockDevice):
            opened.device.look()
        return opened.device, lambda: self._put_lower(key)

    def _put(self, slot: Slot, user: Slot) -> None:
        slot.users[user] -= 1
        slot.users += Counter()  # without those that have it open no more
        if slot.deferred_removal and not slot.users:
            self._removed(slot.name)

    def _put_lower(self, key: tuple[Hashable, bool]) -> None:
        opened = self._opened[key]
        opened.users -= 1
        if not opened.users:
            del self._opened[key]
            if hasattr(opened.device, "close"):
                if not self.reactor.in_callback:
                    self.reactor.step()  # an io_uring lets go of a device only when it is entered
                opened.device.close()


class _Opened:
    def __init__(self, device: Device) -> None:
        self.device = device
        self.users = 0


class TableHost:
    """The `Host` of the targets of one table."""

    def __init__(self, devices: UserDevices, slot: Slot, table: ActiveTable) -> None:
        self._devices = devices
        self._slot = slot
        self._table = table
        self._areas: list[tuple[Device, int, int]] = []
        guard = Guard(devices.reactor, self._failed, self._stopped)
        self.reactor = cast(Reactor, guard)
        self.call = guard.call
        self.module = devices.module

    @property
    def name(self) -> str:
        return self._slot.name

    @property
    def sectors(self) -> int:
        return self._table.sectors

    @property
    def suspended(self) -> bool:
        return self._slot.mapped.suspended

    @property
    def noflush(self) -> bool:
        return self._slot.mapped.noflush

    def open(self, path: str, *, write: bool = True) -> Device:
        readonly = self._table.readonly
        device, close = self._devices.open(self._slot, path, write=write, readonly=readonly)
        self._table.closers.callback(close)
        self._table.opened[path] = device
        return device

    def label(self, device: Device) -> str:
        return label(device, device.path)

    def use(self, device: Device, start: int, count: int) -> None:
        self._areas.append((device, start, count))
        size = max(self._table.logical_block_size, device.logical_block_size)
        self._table.logical_block_size = size

    def event(self) -> None:
        self._slot.events += 1
        self._devices.notice()

    def hold(self) -> None:
        self._slot.mapped.hold()
        self._devices.wait_idle(self._slot.mapped)

    def release(self) -> None:
        self._slot.mapped.release()

    def _failed(self, error: BaseException) -> None:
        error.add_note(f"a target of {self.name} raised it: all I/O of its table ends with EIO")
        targets, mapped = list(self._table.targets), self._slot.mapped
        self._table.targets[:] = map(FailedTarget, targets)
        if mapped.active is self._table:
            mapped.activate(self._table)
        for target in targets:
            target.wants_end_io = False
            self._report(target.failed)
        self.event()

    def _stopped(self) -> None:
        for target in self._table.targets:
            self._report(target.stopped)
        self._slot.mapped.end_held(self._table)

    def _report(self, notify: Callable[[], object]) -> None:
        try:
            notify()
        except Exception as error:
            self._devices.reactor.report(error)

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


@contextlib.contextmanager
def refused(name: str, action: str, target: str = "") -> Iterator[None]:
    """Make a DeviceError of device `name` of what `target` refuses or fails at in `action`.

    A target of a user's own may raise anything.
    """
    try:
        yield
    except TargetError as error:
        raise DeviceError(name, action, error.errno, error.reason) from error
    except DmcopyError:
        raise
    except Exception as error:
        hint = f"target '{target}' raised {type(error).__name__}: {error}"
        raise DeviceError(name, action, errno.EINVAL, hint) from error


def label(device: Device, word: str) -> str:
    """Return how a table or status line names a device that is open: see `Host.label`.

    A mapped device by the name that it has now, a block device by its number. `word` is for what
    has neither.
    """
    if isinstance(device, Underlying):
        return device.path
    match device.identity:
        case ("block", int(number)):
            return devno_text(number)
    return word


def _open_block(path: str, write: bool) -> Device:
    return BlockDevice.open(_node(path), write=write)


def _node(path: str) -> str:
    """Return the real path of a device of a table, which may be written as major:minor."""
    return os.path.realpath(openable(path))
