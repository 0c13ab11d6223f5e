"""A mapper in memory that can crash at any call; what its devices hold is for its subclasses."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dmcopy.errors import BusyError, DeviceError
from dmcopy.mapper.base import DmInfo, Mapper
from dmcopy.mapper.device import DmDevice
from dmcopy.table import Table


class Crash(BaseException):
    """The process was killed."""


@dataclass
class Mapped:
    """A mapped device. `moments` is what it held each time that it was suspended; `held`, writes
    that wait; `mirrors`, what its mirror lines have in memory.
    """

    name: str
    number: int
    live: Table | None = None
    inactive: Table | None = None
    suspended: bool = False
    opened: int = 0
    handed_over: bool = False
    moments: list[list[int]] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    mirrors: list[Any] = field(default_factory=list)


class FakeMapper(Mapper):
    """See above. `crash_at` counts the calls that change something; `after`: it has its effect.

    The device `user` is written to before every such call. `strict`: what a kernel would
    refuse is a mistake of the workflow; else it is refused, as after another program has changed
    the devices. The first call `failing` is refused. Not `numbered`, it is no kernel's.
    """

    numbered = True

    def __init__(self) -> None:
        self.devices: dict[str, Mapped] = {}
        self.user = ""
        self.written = 0
        self.calls = 0
        self.crash_at = -1
        self.after = False
        self.dead = False
        self.failing = ""
        self.numbers = 0
        self.strict = True
        self.log: list[str] = []

    # What a subclass adds

    def write(self) -> None:
        """Let the user write something."""
        raise NotImplementedError

    def loaded(self, mapped: Mapped, table: Table) -> None:
        """Look whether a table can be loaded."""
        raise NotImplementedError

    def swapped(self, mapped: Mapped) -> None:
        """Note that `mapped.live` is another table from now on."""

    def resumed(self, mapped: Mapped) -> None:
        """Let I/O continue."""

    def paused(self, mapped: Mapped, *, flush: bool, lockfs: bool) -> None:
        """Hold I/O; the device is not suspended yet."""

    # What a test does

    def revive(self) -> None:
        self.crash_at, self.dead, self.failing = -1, False, ""

    def need(self, good: object, what: str, number: int) -> None:
        """Refuse with an error what is not `good`; see `strict`."""
        assert good or not self.strict, what
        if not good:
            raise DeviceError(what, "use it", number)

    def call(self, what: str, effect: Callable[[], object]) -> None:
        """Count a call that changes something; the process is killed before or after its effect."""
        self.alive()
        self.write()
        here = self.calls == self.crash_at
        self.calls += 1
        self.log.append(what)
        if self.failing and what == self.failing:
            self.failing = ""
            raise DeviceError(what, "do it", errno.EIO)
        if not here or self.after:
            effect()
        if here:
            self.dead = True
            raise Crash(what)

    def alive(self) -> None:
        if self.dead:
            raise Crash("it is dead already")

    def get(self, name: str) -> Mapped:
        if name not in self.devices:
            raise DeviceError(name, "look at it", errno.ENXIO)
        return self.devices[name]

    def mapped(self, device: str) -> Mapped | None:
        """Return the mapped device that a device of a table is."""
        for mapped in self.devices.values():
            if device in (f"254:{mapped.number}", self.path(mapped.name)):
                return mapped
        return None

    def users(self, name: str) -> list[str]:
        """Return the devices that stand on this one: the kernel keeps it."""
        mapped = self.devices.get(name)
        names = {self.path(name), f"254:{mapped.number}"} if mapped else set()
        return [
            other.name
            for other in self.devices.values()
            for table in (other.live, other.inactive)
            if table is not None and names & set(table.devices)
        ]

    def replace(self, name: str, table: Table) -> None:
        """Put another program's device in the place of one."""
        self.numbers += 1
        self.devices[name] = Mapped(name, self.numbers, table)

    # What a mapper does

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
        del uuid, readonly, minor, keep
        self.need(name not in self.devices, name, errno.EBUSY)

        def make() -> None:
            self.numbers += 1
            self.devices[name] = Mapped(name, self.numbers)

        self.call(f"create {name}", make)
        if table is not None:  # a kill may come between the two
            self.call(f"fill {name}", lambda: (self._load(name, table), self._resume(name)))
        return DmDevice(self, name)

    def load(self, name: str, table: Table, *, readonly: bool = False) -> None:
        del readonly
        self.call(f"load {name}", lambda: self._load(name, table))

    def clear(self, name: str) -> None:
        def clear() -> None:
            self.get(name).inactive = None

        self.call(f"clear {name}", clear)

    def suspend(self, name: str, *, flush: bool = True, lockfs: bool = True) -> None:
        def suspend() -> None:
            mapped = self.get(name)
            if not mapped.suspended:
                self.paused(mapped, flush=flush, lockfs=lockfs)
            mapped.suspended = True

        self.call(f"suspend {name}", suspend)

    def resume(self, name: str, *, flush: bool = True, lockfs: bool = True) -> None:
        del flush, lockfs
        self.call(f"resume {name}", lambda: self._resume(name))

    def remove(self, name: str, *, deferred: bool = False, timeout: float | None = None) -> None:
        del timeout

        def remove() -> None:
            mapped = self.get(name)
            users = self.users(name)
            if users or (mapped.opened and not deferred):
                raise BusyError(name, users)
            del self.devices[name]

        self.call(f"remove {name}", remove)

    def ls(self) -> list[DmInfo]:
        return [self.info(name) for name in sorted(self.devices)]

    def info(self, name: str) -> DmInfo:
        self.alive()
        mapped = self.get(name)
        return DmInfo(
            name,
            number=(254, mapped.number) if self.numbered else None,
            open_count=mapped.opened,
            suspended=mapped.suspended,
            live=mapped.live is not None,
            inactive=mapped.inactive is not None,
        )

    def table(self, name: str, *, inactive: bool = False) -> Table:
        self.alive()
        mapped = self.get(name)
        return (mapped.inactive if inactive else mapped.live) or Table()

    def path(self, name: str) -> str:
        return f"/dev/mapper/{name}"

    def _unasked(self, *_: Any, **__: Any) -> Any:
        """Be what no workflow asks of a mapper."""
        raise NotImplementedError

    open = rename = set_uuid = message = deps = targets = refusal = _unasked

    def _load(self, name: str, table: Table) -> None:
        mapped = self.get(name)
        self.loaded(mapped, table)
        mapped.inactive = table

    def _resume(self, name: str) -> None:
        mapped = self.get(name)
        if mapped.inactive is not None:
            self.swapped(mapped)
            mapped.live, mapped.inactive = mapped.inactive, None
        mapped.suspended = False
        self.resumed(mapped)
