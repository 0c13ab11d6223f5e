"""Devices made for a while on either engine, and what came of the operations on them."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from dmcopy.block.devno import devno_text
from dmcopy.errors import (
    DeadlineError,
    DeviceError,
    DmcopyError,
    ExitCode,
    MismatchError,
    UsageError,
)
from dmcopy.mapper.base import PREFIX
from dmcopy.mapper.operation import Operation
from dmcopy.table import ConciseDevice, Table
from dmcopy.units import parse_sectors

if TYPE_CHECKING:
    from dmcopy.mapper.engines import MapperOverFiles
    from dmcopy.mapper.mapped_io import MappedIo


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of an operation: lines for people, values for programs, an error's name or none.

    `reason` says more about an error, in words that differ between engines.
    """

    device: str
    operation: Operation
    lines: tuple[str, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    reason: str = ""
    code: ExitCode = ExitCode.OK

    @property
    def text(self) -> str:
        """The outcome as printed."""
        head = f"{self.device}: {self.operation.text}"
        if self.error:
            return f"{head}: {self.error}"
        return "\n".join(f"{head}: {line}" for line in self.lines) or f"{head}: ok"

    def as_dict(self) -> dict[str, Any]:
        """The outcome as JSON has it."""
        head = {"device": self.device, "operation": self.operation.text}
        return {**head, **self.values, "error": self.error}


@dataclass(slots=True)
class _State:
    """What the run knows of a device without asking: it alone changes it."""

    length: int
    readonly: bool
    suspended: bool = False
    loaded: int = 0  # the length of the table that the next resume makes active


class Run:
    """Devices made for the length of a `with` block, and operations on them, in order.

    They have names of their own, and are removed at the end. What is reported is the same on both
    engines: devices are named as the caller named them, and an error by its number's name.
    Tables name other devices of the run as /dev/mapper/NAME. Without a name, an operation is
    for the last device: the top of a stack.
    """

    def __init__(self, engine: MapperOverFiles, devices: list[ConciseDevice]) -> None:
        if not devices:
            raise UsageError("there is no device to run anything on")
        self.engine = engine
        self.mapper = engine.mapper
        self.devices = {device.name: device for device in devices}
        if len(self.devices) < len(devices):
            raise UsageError("two devices have the same name")
        unique = os.urandom(3).hex()
        self._names = {name: f"{PREFIX}run-{unique}-{name}" for name in self.devices}
        self._lower = {
            self.mapper.path(name): self.mapper.path(made) for name, made in self._names.items()
        }
        self._labels: dict[str, str] = {}
        self._states: dict[str, _State] = {}
        self._open: dict[str, MappedIo] = {}
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as exits:
            for name, device in self.devices.items():
                made = self._names[name]
                table = device.table.with_devices(self._find)
                exits.enter_context(self.mapper.device(made, table, readonly=device.readonly))
                exits.callback(self._close, made)
                self._states[made] = _State(table.length, device.readonly)
                self._label(self.mapper.path(name), self.mapper.path(made))
            self._exits = exits.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exits.__exit__(kind, error, trace)

    def check(self, operation: Operation) -> None:
        """Raise UsageError when an operation is for a device that is not there."""
        if operation.device and operation.device not in self.devices:
            known = ", ".join(self.devices)
            raise UsageError(f"{operation.device!r} is not a device here; known: {known}")

    def run(self, operation: Operation) -> Answer:
        """Run one operation. What the device or the engine refuses is in the outcome.

        Raises UsageError for words that make no sense.
        """
        self.check(operation)
        name = operation.device or list(self.devices)[-1]
        try:
            result = operation.perform(self, self._names[name], *operation.words)
        except DeviceError as error:
            number = errno.errorcode.get(error.errno, "EIO")
            return Answer(name, operation, error=number, reason=str(error), code=error.exit_code)
        except (MismatchError, DeadlineError, _RefusedError) as error:
            return Answer(name, operation, error=str(error), code=error.exit_code)
        return Answer(name, operation, *result)

    def opened(self, name: str, *, write: bool = False) -> MappedIo:
        """Return the open device `name`, unless its I/O would wait for ever or is not allowed."""
        state = self._states[name]
        if state.suspended:
            raise _RefusedError("suspended: its I/O would wait until it is resumed")
        if write and state.readonly:
            raise _RefusedError("read-only")
        if name not in self._open:
            self._open[name] = self.mapper.open(name)
        return self._open[name]

    def place(self, name: str, sector: str, count: str) -> tuple[int, int]:
        """Return a range of the device, which must be on it."""
        start, length = parse_sectors(sector), parse_sectors(count)
        size = self._states[name].length
        if not length or start + length > size:
            raise _RefusedError(f"not within the {size} sectors of the device")
        return start, length

    def named(self, table: Table) -> Table:
        """Return a table with the devices as the caller named them."""
        return table.with_devices(self.label)

    def load(self, name: str, line: str) -> None:
        """Load a table of one line."""
        table = Table.parse(line).with_devices(self._find)
        state = self._states[name]
        self.mapper.load(name, table, readonly=state.readonly)
        state.loaded = table.length

    def suspend(self, name: str, *, flush: bool) -> None:
        self.mapper.suspend(name, flush=flush)
        self._states[name].suspended = True

    def resume(self, name: str) -> None:
        """Resume a device, which may have another size then."""
        self._close(name)
        self.mapper.resume(name)
        state = self._states[name]
        state.suspended = False
        state.length, state.loaded = state.loaded or state.length, 0

    def label(self, device: str) -> str:
        """Return what the caller called a device that the engine names by number or path."""
        return self._labels.get(device, device)

    def _close(self, name: str) -> None:
        """Close a device that is about to go, or to have other blocks."""
        if name in self._open:
            self._open.pop(name).close()

    def _find(self, word: str) -> str:
        path = self._lower.get(word) or self.engine.lower(word)
        self._label(word, path)
        return path

    def _label(self, word: str, path: str) -> None:
        self._labels[path] = self._labels[os.path.realpath(path)] = word
        with contextlib.suppress(OSError):
            number = os.stat(path).st_rdev
            if number:
                self._labels[devno_text(number)] = word


class _RefusedError(DmcopyError):
    """An operation that cannot be done as things are; not one that is wrong in itself."""


def exit_code(outcomes: list[Answer]) -> ExitCode:
    """Return the exit code for these: 4 after a difference, 1 after another failure."""
    codes = {outcome.code for outcome in outcomes}
    if ExitCode.MISMATCH in codes:
        return ExitCode.MISMATCH
    return ExitCode.OK if codes <= {ExitCode.OK} else ExitCode.FAILED
