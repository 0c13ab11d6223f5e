"""Mirrors over the fake mapper, with disks and a log that behave.

A disk holds one number, the latest write that it has seen, and has seen them all or not. The user
of the mirror writes before every call that changes something, so that a table which forgets a
leg's lag is found out.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmcopy.errors import DeadlineError, DeviceError
from dmcopy.status import MirrorStatus, StatusLine
from dmcopy.status.legs import Member
from dmcopy.table import Error, Linear, Mirror, Table, TableLine
from dmcopy.table.mirror import DiskLog
from dmcopy.table.record import Ratio
from dmcopy.workflows.journal import Journal
from dmcopy.workflows.record import PlanRecord

from .fake import FakeMapper, Mapped

REGIONS = 4
SECTORS = 4096


@dataclass
class Resync:
    """What an active mirror line has in memory."""

    in_sync: int
    was_in_sync: bool = False
    letters: str = ""
    default: int = 0


class FakeMirrors(FakeMapper):
    """See above. `user` is the device that is written to all the time."""

    numbered = False

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.disks: dict[str, int] = {}
        self.complete: set[str] = set()
        self.logs: dict[str, int] = {}
        self.broken: set[str] = set()
        self._written: set[str] = set()
        self.acknowledged = 0
        self.failed_writes = 0

    def disk(self, name: str, sectors: int = SECTORS) -> str:
        """Make a disk; return its path."""
        path = self.folder / name
        path.touch()
        with path.open("r+b") as file:
            file.truncate(sectors * 512)
        self.disks[str(path)] = 0
        return str(path)

    def use(self, name: str) -> None:
        """Have a device written to from now on."""
        self.user = name
        self.write()

    def write(self) -> None:
        """Write the next number, and note it if the write ends."""
        if not self.user or self.user not in self.devices:
            return
        self.written += 1
        device = self.devices[self.user]
        if device.suspended or device.held or self._stuck(device):
            device.held.append(self.written)
        else:
            self._write(device, self.written)

    def read(self, name: str) -> int:
        """Return the number that a device has, 0 if it cannot be read."""
        device = self.devices[name]
        assert not device.suspended
        return self._value(device)

    # What the fake mapper asks

    def loaded(self, mapped: Mapped, table: Table) -> None:
        del mapped
        table.check()
        for device in table.devices:
            if device not in self.disks and self.mapped(device) is None:
                raise DeviceError(device, "find it", errno.ENODEV)

    def paused(self, mapped: Mapped, *, flush: bool, lockfs: bool) -> None:
        if mapped.held and flush:
            self.failed_writes += len(mapped.held)  # a flushing suspend fails them
            mapped.held.clear()
        assert not (mapped.held and lockfs), "a file system would wait for held writes"

    def swapped(self, mapped: Mapped) -> None:
        mapped.mirrors = [self._resumed(line) for line in mapped.inactive or () if is_mirror(line)]

    def resumed(self, mapped: Mapped) -> None:
        if mapped.live is None:
            return
        for mirror, line in zip(mapped.mirrors, filter(is_mirror, mapped.live), strict=True):
            self._reopen(mirror, line)
        above = [self.devices[name] for name in self.users(mapped.name)]
        for device in (mapped, *(one for one in above if not one.suspended)):
            held, device.held = device.held, []
            for number in held:
                self._write(device, number)

    # What a mapper does

    def status(self, name: str, *, flush: bool = True) -> tuple[StatusLine, ...]:
        del flush
        device = self.get(name)
        self._progress(device)
        lines = []
        mirrors = iter(device.mirrors)
        for line in device.live or ():
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

    def wait(self, name: str, event: int, *, timeout: float) -> int:
        raise DeadlineError(f"{name}: nothing after {event} within {timeout} s")

    # What is behind it

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
        waits = device.suspended or self._stuck(device)
        for mirror, line in zip(device.mirrors, filter(is_mirror, device.live or ()), strict=True):
            assert isinstance(line.target, Mirror)
            if waits or mirror.in_sync == REGIONS:
                pass
            elif set(mirror.letters) == {"A"}:
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
        done = all(self._write_line(device, line, number) for line in device.live or ())
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
        lines = [one for one in device.live or () if is_mirror(one)]
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
        below = self._below(device)
        assert below.live is not None
        if below.suspended or any(isinstance(line.target, Error) for line in below.live):
            return False
        return all(
            self._set(line.target.device, value)
            for line in below.live
            if isinstance(line.target, Linear)
        )

    def _below(self, device: str) -> Mapped:
        below = self.mapped(device)
        assert below is not None, device
        return below

    def _stuck(self, device: Mapped) -> bool:
        """Return whether I/O waits for a device below, which is suspended."""
        found = (self.mapped(one) for one in (device.live.devices if device.live else ()))
        return any(below.suspended or self._stuck(below) for below in found if below is not None)

    def _disks_of(self, device: str) -> set[str]:
        """Return the disks that a device is made of."""
        if device in self.disks:
            return {device}
        below = self._below(device).live or Table()
        return {disk for one in below.devices for disk in self._disks_of(one)}

    def _leg(self, line: TableLine, at: int) -> int | None:
        assert isinstance(line.target, Mirror)
        return self._disk_value(line.target.legs[at].device)

    def _disk_value(self, device: str) -> int | None:
        if device in self.disks:
            if device in self.broken:
                return None
            return self.disks[device] if device in self.complete else 0
        below = self._below(device)
        if any(isinstance(line.target, Error) for line in below.live or ()):
            return None
        return self._value(below)

    def _value(self, device: Mapped) -> int:
        values = []
        mirrors = iter(device.mirrors)
        for line in device.live or ():
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
        table = self.devices[name].live
        assert table is not None
        (line,) = table
        assert isinstance(line.target, Mirror)
        return [self._leg(line, at) for at in range(len(line.target.legs))]


class CrashingJournal(Journal):
    """A journal whose writes are calls that can crash, too. Its process is long gone."""

    def __init__(self, folder: Path, fake: FakeMirrors) -> None:
        super().__init__(folder, owner="1 0")
        self._fake = fake

    def save(self, record: PlanRecord) -> None:
        self._fake.call("save", lambda: super(CrashingJournal, self).save(record))

    def end(self, record: PlanRecord) -> None:
        self._fake.call("end", lambda: super(CrashingJournal, self).end(record))


def is_mirror(line: TableLine) -> bool:
    return isinstance(line.target, Mirror)


def put(letters: str, at: int, letter: str) -> str:
    return letters[:at] + letter + letters[at + 1 :]
