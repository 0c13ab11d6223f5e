"""The interface of an engine that runs tables: the kernel's, or dmcopy's own in userspace.

A workflow that is written against `Mapper` runs on either. What only one of them can do is not
here.
"""

from __future__ import annotations

import abc
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self

from dmcopy.block.devno import devno_text
from dmcopy.errors import BusyError, UsageError, of_limit
from dmcopy.mapper.device import DmDevice
from dmcopy.status import StatusLine
from dmcopy.table import ConciseDevice, Table

if TYPE_CHECKING:
    from dmcopy.mapper.mapped_io import MappedIo

PREFIX = "dmcopy-"
UUID_PREFIX = "DMCOPY-"
"""What the UUIDs of devices begin with that dmcopy makes for itself."""
QUICK_SECONDS = 2.0


class Version(NamedTuple):
    """A target's version: what it can do may differ in kernels that show the same one."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


@dataclass(frozen=True, slots=True)
class DmInfo:
    """What an engine knows of a mapped device. `events` counts from 0 at its creation."""

    name: str
    uuid: str = ""
    number: tuple[int, int] | None = None  # major and minor; None where there is no block device
    open_count: int = 0
    segments: int = 0
    events: int = 0
    suspended: bool = False
    readonly: bool = False
    live: bool = True  # there is an active table
    inactive: bool = False  # there is a loaded one, which the next resume makes active
    deferred: bool = False  # it is removed at its last close
    deps: tuple[str, ...] = field(default=(), compare=False)

    @property
    def devno(self) -> str:
        """The device number as tables print it, major:minor; empty where there is none."""
        return "" if self.number is None else devno_text(self.number)


class Mapper(abc.ABC):
    """An engine. Names are any text without `/`, at most 127 bytes; lengths are in sectors.

    Every method raises UsageError for a wrong name or table before it changes anything, DeviceError
    when the engine refuses, BusyError naming the holders, MissingError when the machine lacks the
    engine, and DeadlineError when it does not answer in time.
    """

    prefix: str = PREFIX

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            self.close()
        else:
            note_failure(error, self.close)

    def close(self) -> None:  # noqa: B027 - most have nothing
        """Give up what the engine itself has, such as open nodes; devices may outlive it."""

    @abc.abstractmethod
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
        """Make a device, load `table` and resume it; without a table, only make it.

        All or nothing: after an error there is no new device. Raises DeviceError: EBUSY where
        another has the name or the UUID (dm_hash_insert in dm-ioctl.c). `keep` says that it is
        meant to outlive this process; others are removed by `reap` once it has ended.
        """

    @abc.abstractmethod
    def open(self, name: str) -> MappedIo:
        """Open a device for I/O. Raises DeviceError (ENXIO where there is none).

        The kernel's is opened through its node, past the page cache; close it before it is removed.
        """

    @abc.abstractmethod
    def load(self, name: str, table: Table, *, readonly: bool = False) -> None:
        """Load `table` beside the active one; the next resume swaps it in."""

    @abc.abstractmethod
    def clear(self, name: str) -> None:
        """Drop the table that is loaded and not active."""

    @abc.abstractmethod
    def suspend(self, name: str, *, flush: bool = True, lockfs: bool = True) -> None:
        """Hold new I/O and wait for what is in flight.

        `flush` False keeps queued I/O queued instead of sending it down; `lockfs` False leaves a
        file system on the device as it is instead of freezing it.
        """

    @abc.abstractmethod
    def resume(self, name: str, *, flush: bool = True, lockfs: bool = True) -> None:
        """Let I/O continue, with the loaded table if there is one."""

    @abc.abstractmethod
    def remove(self, name: str, *, deferred: bool = False, timeout: float | None = None) -> None:
        """Remove a device; `deferred` lets it go at its last close if it is open."""

    @abc.abstractmethod
    def rename(self, name: str, new_name: str) -> None:
        """Give a device another name. Raises DeviceError: EBUSY where another device has it."""

    @abc.abstractmethod
    def set_uuid(self, name: str, uuid: str) -> None:
        """Give a device that has no UUID one; it cannot be changed afterwards.

        Raises DeviceError: EBUSY where another device has it, EINVAL where this one has one.
        """

    @abc.abstractmethod
    def ls(self) -> list[DmInfo]:
        """Return every mapped device, by name."""

    @abc.abstractmethod
    def info(self, name: str) -> DmInfo:
        """Return what is known of a device."""

    @abc.abstractmethod
    def table(self, name: str, *, inactive: bool = False) -> Table:
        """Return the active table, or the loaded one; empty when there is none."""

    def active_tables(self) -> dict[str, Table]:
        """Return the active table of every mapped device, by name."""
        return {info.name: self.table(info.name) for info in self.ls()}

    @abc.abstractmethod
    def status(self, name: str, *, flush: bool = True) -> tuple[StatusLine, ...]:
        """Return the status of each line of the active table.

        `flush` False keeps thin, cache and the like from committing metadata first.
        """

    def statuses(self, *, flush: bool = True) -> dict[str, tuple[StatusLine, ...]]:
        """Return the status of every mapped device, by name; see `status`."""
        return {info.name: self.status(info.name, flush=flush) for info in self.ls()}

    @abc.abstractmethod
    def message(self, name: str, *words: str, sector: int = 0) -> str:
        """Send words to the target at `sector`; return its answer, often empty."""

    @abc.abstractmethod
    def wait(self, name: str, event: int, *, timeout: float) -> int:
        """Wait until the event number is another than `event`; return it.

        Read the number with `info` first. May be called again after a DeadlineError.
        """

    @abc.abstractmethod
    def deps(self, name: str) -> tuple[str, ...]:
        """Return the devices, major:minor, that the active table uses."""

    def all_deps(self) -> dict[str, tuple[str, ...]]:
        """Return the devices that the active table of every mapped device uses, by name."""
        return {info.name: self.deps(info.name) for info in self.ls()}

    @abc.abstractmethod
    def targets(self) -> dict[str, Version]:
        """Return the targets that the engine has at the moment, and their versions."""

    def sleep(self, seconds: float) -> None:
        """Let time pass, and the engine work."""
        time.sleep(seconds)

    @abc.abstractmethod
    def path(self, name: str) -> str:
        """Return the path at which the device can be opened."""

    @abc.abstractmethod
    def refusal(self, table: Table) -> str:
        """Try `table` on a device that never runs: return why it is refused, empty if it is not.

        The way to find out whether a target has a feature: versions do not tell.
        """

    def exists(self, name: str) -> bool:
        """Return whether there is a device of this name."""
        return any(info.name == name for info in self.ls())

    def handle(self, name: str) -> DmDevice:
        """Return a handle on a device that is there already."""
        return DmDevice(self, name)

    def create_all(self, devices: list[ConciseDevice], *, keep: bool = False) -> list[DmDevice]:
        """Create devices in order, all or none: after an error those made so far are gone."""
        made: list[DmDevice] = []
        try:
            for one in devices:
                made.append(
                    self.create(
                        one.name,
                        one.table,
                        uuid=one.uuid,
                        readonly=one.readonly,
                        minor=one.minor,
                        keep=keep,
                    )
                )
        except BaseException as error:
            for device in reversed(made):
                note_failure(error, device.remove)
            raise
        return made

    def swap(self, name: str, table: Table, *, flush: bool = True, lockfs: bool = True) -> None:
        """Replace the active table under suspend; after an error the old one stays."""
        self.load(name, table)
        try:
            self.suspend(name, flush=flush, lockfs=lockfs)
            self.resume(name, flush=flush, lockfs=lockfs)
        except BaseException as error:
            note_failure(error, lambda: self.thaw(name))
            raise

    @contextlib.contextmanager
    def device(self, name: str, table: Table, *, readonly: bool = False) -> Iterator[DmDevice]:
        """Make a device for the length of a `with` block, under a name with this mapper's prefix.

        At the end it is resumed if it was left suspended, and removed. When the block raised, that
        error stays the one that is seen; what then goes wrong at the end is added to it as a note.
        """
        full = name if name.startswith(self.prefix) else self.prefix + name
        made = self.create(full, table, readonly=readonly)
        try:
            yield made
        except BaseException as error:
            note_failure(error, lambda: self._finish(made))
            raise
        self._finish(made)

    def thaw(self, name: str) -> None:
        """Resume a device that was left suspended, with the table that it had."""
        info = self.info(name)
        if info.inactive:
            self.clear(name)
        if info.suspended and info.live:
            self.resume(name, flush=False, lockfs=False)

    def _finish(self, made: DmDevice) -> None:
        try:
            self.remove(made.name, timeout=QUICK_SECONDS)
        except BusyError:
            # A process that waits for I/O on a suspended device keeps it open; resumed, it lets go.
            self.thaw(made.name)
            self.remove(made.name)


def check_name(name: str) -> str:
    """Return `name`, or raise UsageError: 1 to 127 bytes, no `/` and no zero byte (dm-ioctl.h)."""
    size = len(os.fsencode(name))
    if not name or name in (".", ".."):
        raise UsageError(f"{name!r} is not a name for a device")
    if "/" in name or "\0" in name:
        raise UsageError(f"{name!r}: a device's name cannot have a slash or a zero byte in it")
    if size > 127:
        raise UsageError(f"{name!r} is {size} bytes long: a device's name has at most 127")
    return name


def note_failure(error: BaseException, action: Callable[[], object]) -> None:
    """Run a cleanup whose own failure must not hide `error`."""
    try:
        action()
    except Exception as failure:
        said = of_limit(failure) or failure
        error.add_note(f"and then, while cleaning up: {said or type(said).__name__}")
