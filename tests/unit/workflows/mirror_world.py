"""A mapper in memory with disks, mirrors and a log that behave, and that can crash at any call.

A disk holds one number, the latest write that it has seen, and has seen them all or not. Whoever
uses the mirror writes before every call that changes something, so that a table which forgets a
leg's lag is found out.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmcopy.errors import DeviceError
from dmcopy.mapper.base import DeviceInfo, Mapper, Version
from dmcopy.mapper.device import Device
from dmcopy.mapper.mapped_io import MappedIo
from dmcopy.status import MirrorStatus, StatusLine
from dmcopy.status.legs import Member
from dmcopy.table import Error, Linear, Mirror, Table, TableLine
from dmcopy.table.mirror import DiskLog
from dmcopy.table.record import Ratio
from dmcopy.workflows.journal import Journal
from dmcopy.workflows.record import Record

REGIONS = 4
SECTORS = 4096


class Crash(BaseException):
    """The process is gone."""


@dataclass
class Resync:
    """What an active mirror line has in memory."""

    in_sync: int
    was_in_sync: bool = False
    letters: str = ""
    default: int = 0


@dataclass
class Mapped:
    """A mapped device."""

    name: str
    active: Table | None = None
    inactive: Table | None = None
    suspended: bool = True
    mirrors: list[Resync] = field(default_factory=list)
    held: list[int] = field(default_factory=list)


class World(Mapper):
    """See above. `user` is the device that somebody writes to all the time.

    `strict`: what a kernel would refuse is a mistake of the workflow; else it is refused, as after
    somebody has changed the devices.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.devices: dict[str, Mapped] = {}
        self.disks: dict[str, int] = {}
        self.complete: set[str] = set()
        self.logs: dict[str, int] = {}
        self.broken: set[str] = set()
        self.user = ""
        self.written = 0
        self._written: set[str] = set()
        self.acknowledged = 0
        self.failed_writes = 0
        self.calls = 0
        self.crash_at = -1
        self.crash_how = ""
        self.strict = True

    def disk(self, name: str, sectors: int = SECTORS) -> str:
        """Make a disk; return its path."""
        path = self.folder / name
        path.touch()
        with path.open("r+b") as file:
            file.truncate(sectors * 512)
        self.disks[str(path)] = 0
        return str(path)

    def use(self, name: str) -> None:
        """Let somebody write to a device from now on."""
        self.user = name
        self.write()

    def write(self) -> None:
        """Write the next number, and note it if the write ends."""
        if not self.user or self.user not in self.devices:
            return
        self.written += 1
        device = self.devices[self.user]
        if device.suspended or device.held:
            device.held.append(self.written)
        else:
            self._write(device, self.written)

    def read(self, name: str) -> int:
        """Return the number that a device has, 0 if it cannot be read."""
        device = self.devices[name]
        assert not device.suspended
        return self._value(device)

    # What a mapper does

    def create(self, name: str, table: Table | None = None, **_: Any) -> Device:
        for _step in self._call(two=table is not None):
            if name not in self.devices:
                self.devices[name] = Mapped(name)
            elif table is not None:
                device = self.devices[name]
                self.need(device.active is None, name, errno.EEXIST)
                self._check(table)
                device.inactive = table
                self._resume(device)
        return Device(self, name)

    def open(self, name: str) -> MappedIo:
        raise NotImplementedError

    def load(self, name: str, table: Table, *, readonly: bool = False) -> None:
        del readonly
        self._check(table)
        for _ in self._call():
            self._get(name).inactive = table

    def clear(self, name: str) -> None:
        for _ in self._call():
            self._get(name).inactive = None

    def suspend(self, name: str, *, flush: bool = True, lockfs: bool = True) -> None:
        device = self._get(name)
        assert not device.suspended, f"{name} is suspended already"
        for _ in self._call():
            if device.held and flush:
                self.failed_writes += len(device.held)  # a flushing suspend fails them
                device.held.clear()
            assert not (device.held and lockfs), "a file system would wait for held writes"
            device.suspended = True

    def resume(self, name: str, *, flush: bool = True, lockfs: bool = True) -> None:
        del flush, lockfs
        device = self._get(name)
        for _ in self._call():
            self._resume(device)

    def remove(self, name: str, *, deferred: bool = False, timeout: float | None = None) -> None:
        del deferred, timeout
        self._get(name)
        for _ in self._call():
            users = [one.name for one in self.devices.values() if self.path(name) in one_uses(one)]
            self.need(not users, f"{name} is removed from under {users}", errno.EBUSY)
            del self.devices[name]

    def rename(self, name: str, new_name: str) -> None:
        raise NotImplementedError

    def set_uuid(self, name: str, uuid: str) -> None:
        raise NotImplementedError

    def ls(self) -> list[DeviceInfo]:
        return [self.info(name) for name in sorted(self.devices)]

    def info(self, name: str) -> DeviceInfo:
        device = self._get(name)
        return DeviceInfo(
            name,
            suspended=device.suspended,
            live=device.active is not None,
            inactive=device.inactive is not None,
        )

    def table(self, name: str, *, inactive: bool = False) -> Table:
        device = self._get(name)
        return (device.inactive if inactive else device.active) or Table()

    def status(self, name: str, *, flush: bool = True) -> tuple[StatusLine, ...]:
        del flush
        device = self._get(name)
        self._progress(device)
        lines = []
        mirrors = iter(device.mirrors)
        for line in device.active or ():
            status: Any = None
            if isinstance(line.target, Mirror):
                sync = next(mirrors)
                members = tuple(Member(leg.device) for leg in line.target.legs)
                log = ("core",)
                if isinstance(line.target.log, DiskLog):
                    log = ("disk", line.target.log.device, "A")  # type: ignore[assignment]
                status = MirrorStatus(members, Ratio(sync.in_sync, REGIONS), sync.letters, log)
            lines.append(StatusLine(line.start, line.length, line.target_name, status))
        return tuple(lines)

    def message(self, name: str, *words: str, sector: int = 0) -> str:
        raise NotImplementedError

    def wait(self, name: str, event: int, *, timeout: float) -> int:
        raise NotImplementedError

    def deps(self, name: str) -> tuple[str, ...]:
        return self._get(name).active.devices if self._get(name).active else ()  # type: ignore[union-attr]

    def targets(self) -> dict[str, Version]:
        return {}

    def path(self, name: str) -> str:
        return f"/mapped/{name}"

    def refusal(self, table: Table) -> str:
        raise NotImplementedError

    # What is behind it

    def need(self, good: object, what: str, number: int) -> None:
        """Refuse with an error what is not `good`; see `strict`."""
        assert good or not self.strict, what
        if not good:
            raise DeviceError(what, "use it", number)

    def _get(self, name: str) -> Mapped:
        if name not in self.devices:
            raise DeviceError(name, "look at it", errno.ENXIO)
        return self.devices[name]

    def call(self) -> Iterator[None]:
        """Yield once, unless this is where the crash comes; for the journal as well."""
        return self._call()

    def _call(self, *, two: bool = False) -> Iterator[None]:
        self.calls += 1
        here = self.calls == self.crash_at
        self.write()
        if here and self.crash_how == "before":
            raise Crash
        yield
        if two:
            if here and self.crash_how == "between":
                raise Crash
            yield
        if here and self.crash_how in ("after", "between"):
            raise Crash

    def _check(self, table: Table) -> None:
        table.check()
        for device in table.devices:
            there = device in self.disks or device.removeprefix("/mapped/") in self.devices
            if not there:
                raise DeviceError(device, "find it", errno.ENODEV)

    def _resume(self, device: Mapped) -> None:
        if device.inactive is not None:
            device.active, device.inactive = device.inactive, None
            device.mirrors = [self._resumed(line) for line in device.active if is_mirror(line)]
        if device.active is None:
            return
        for mirror, line in zip(device.mirrors, filter(is_mirror, device.active), strict=True):
            self._reopen(mirror, line)
        device.suspended = False
        held, device.held = device.held, []
        for number in held:
            self._write(device, number)

    def _resumed(self, line: TableLine) -> Resync:
        target = line.target
        assert isinstance(target, Mirror)
        letters = "A" * len(target.legs)
        sync = target.log.sync  # type: ignore[union-attr]
        if isinstance(target.log, DiskLog) and sync is None:
            in_sync = self.logs.get(target.log.device, 0)
        else:
            in_sync = REGIONS if sync == "nosync" else 0
        return Resync(in_sync, in_sync == REGIONS, letters)

    def _reopen(self, mirror: Resync, line: TableLine) -> None:
        assert isinstance(line.target, Mirror)
        if isinstance(line.target.log, DiskLog):
            self.logs[line.target.log.device] = mirror.in_sync

    def _progress(self, device: Mapped) -> None:
        """Resync one region; after the last, the legs have what the default one has."""
        for mirror, line in zip(
            device.mirrors, filter(is_mirror, device.active or ()), strict=True
        ):
            assert isinstance(line.target, Mirror)
            if mirror.in_sync < REGIONS and not device.suspended and set(mirror.letters) == {"A"}:
                value = self._leg(line, mirror.default)
                if value is None:
                    mirror.letters = put(mirror.letters, mirror.default, "S")
                    continue
                if mirror.in_sync + 1 == REGIONS:
                    self._written = set()
                    source = self._disks_of(line.target.legs[mirror.default].device)
                    for at in range(len(line.target.legs)):
                        if not self._set(line.target.legs[at].device, value):
                            mirror.letters = put(mirror.letters, at, "S")
                    if source & self.complete:
                        self.complete |= self._written
                if set(mirror.letters) == {"A"}:
                    mirror.in_sync += 1
            mirror.was_in_sync |= mirror.in_sync == REGIONS
            self._reopen(mirror, line)

    def _write(self, device: Mapped, number: int) -> None:
        self._written = set()
        done = all(self._write_line(device, line, number) for line in device.active or ())
        if self._written:  # and not held before it went anywhere
            self.complete = self.complete & self._written if self.acknowledged else self._written
        if not done:
            device.held.append(number)
        elif device.name == self.user:
            self.acknowledged = max(self.acknowledged, number)

    def _write_line(self, device: Mapped, line: TableLine, number: int) -> bool:
        if isinstance(line.target, Linear):
            if not self._set(line.target.device, number):
                self.failed_writes += 1
            return True
        if not isinstance(line.target, Mirror):
            self.failed_writes += 1
            return True
        lines = [one for one in device.active or () if is_mirror(one)]
        mirror = device.mirrors[lines.index(line)]
        good = [at for at, letter in enumerate(mirror.letters) if letter == "A"]
        if len(good) < len(mirror.letters):
            return False  # after a failure they are held
        targets = good if mirror.in_sync == REGIONS else [mirror.default]
        for at in targets:
            if not self._set(line.target.legs[at].device, number):
                mirror.letters = put(mirror.letters, at, "D")
                if mirror.was_in_sync and mirror.default == at:
                    mirror.default = next(one for one in good if one != at)
        if set(mirror.letters) != {"A"}:
            mirror.in_sync = min(mirror.in_sync, REGIONS - 1)
            self._reopen(mirror, line)
            return False
        return True

    def _set(self, device: str, value: int) -> bool:
        if device in self.disks:
            if device not in self.broken:
                self.disks[device] = value
                self._written.add(device)
            return device not in self.broken
        below = self.devices[device.removeprefix("/mapped/")]
        assert below.active is not None
        if below.suspended or any(isinstance(line.target, Error) for line in below.active):
            return False
        return all(
            self._set(line.target.device, value)
            for line in below.active
            if isinstance(line.target, Linear)
        )

    def _disks_of(self, device: str) -> set[str]:
        """Return the disks that a device is made of."""
        if device in self.disks:
            return {device}
        below = self.devices[device.removeprefix("/mapped/")].active or Table()
        return {disk for one in below.devices for disk in self._disks_of(one)}

    def _leg(self, line: TableLine, at: int) -> int | None:
        assert isinstance(line.target, Mirror)
        return self._disk_value(line.target.legs[at].device)

    def _disk_value(self, device: str) -> int | None:
        if device in self.disks:
            if device in self.broken:
                return None
            return self.disks[device] if device in self.complete else 0
        below = self.devices[device.removeprefix("/mapped/")]
        if any(isinstance(line.target, Error) for line in below.active or ()):
            return None
        return self._value(below)

    def _value(self, device: Mapped) -> int:
        values = []
        mirrors = iter(device.mirrors)
        for line in device.active or ():
            if isinstance(line.target, Linear):
                values.append(self._disk_value(line.target.device))
            elif isinstance(line.target, Mirror):
                mirror = next(mirrors)
                found = [self._leg(line, mirror.default)]
                if mirror.was_in_sync:  # a read that fails is tried on another leg
                    found += [self._leg(line, at) for at in range(len(line.target.legs))]
                values.append(next((value for value in found if value is not None), None))
        return min(value or 0 for value in values)

    def legs(self, name: str) -> list[int | None]:
        """Return what each leg of a mirror has."""
        (line,) = self.devices[name].active or ()
        assert isinstance(line.target, Mirror)
        return [self._leg(line, at) for at in range(len(line.target.legs))]


class CrashingJournal(Journal):
    """A journal whose writes are calls that can crash, too. Its process is long gone."""

    def __init__(self, folder: Path, world: World) -> None:
        super().__init__(folder, owner="1 0")
        self._world = world

    def save(self, record: Record) -> None:
        for _ in self._world.call():
            super().save(record)

    def end(self, record: Record) -> None:
        for _ in self._world.call():
            super().end(record)


def is_mirror(line: TableLine) -> bool:
    return isinstance(line.target, Mirror)


def put(letters: str, at: int, letter: str) -> str:
    return letters[:at] + letter + letters[at + 1 :]


def one_uses(device: Mapped) -> tuple[str, ...]:
    return (device.active.devices if device.active else ()) + (
        device.inactive.devices if device.inactive else ()
    )
