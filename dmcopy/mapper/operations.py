"""Operations on mapped devices as words, in the manner of qemu-io: `read 0 8`, `verify 0 8 0x5a`.

A `Session` makes devices under names of its own on either engine, runs operations on them, and
removes them. What it reports is the same on both: names are those that the caller gave, and an
error is the name of its number.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Final, Protocol, Self

from dmcopy.errors import DeviceError, ExitCode, MismatchError, UsageError
from dmcopy.mapper.base import PREFIX, Mapper
from dmcopy.table import ConciseDevice, Table
from dmcopy.table.words import split
from dmcopy.units import SECTOR_SHIFT, SECTOR_SIZE, parse_sectors

_PREFIX: Final = re.compile(r"(\S+):\s+")
_HEAD_BYTES: Final = 8
_DIGEST_LETTERS: Final = 16


class Handle(Protocol):
    """A mapped device that is open: what both engines' devices can do."""

    def read(self, sector: int, count: int) -> bytes: ...
    def write(self, sector: int, data: bytes) -> None: ...
    def flush(self) -> None: ...
    def discard(self, sector: int, count: int) -> None: ...


class Engine(Protocol):
    """An engine as a session needs it; see `dmcopy.mapper.engines`."""

    mapper: Mapper

    def lower(self, word: str) -> str:
        """Return the path of the device that a table's word stands for."""

    def open(self, name: str) -> Handle:
        """Open a mapped device; the same handle until `forget`."""

    def forget(self, name: str) -> None:
        """Close what `open` opened: the device is about to change its size, or to go."""

    def sleep(self, seconds: float) -> None:
        """Let time pass, and the engine work."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: `text` as it was given, without the name of the device before it."""

    device: str
    text: str
    verb: str
    words: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the operation of `[NAME: ]VERB WORD...`. Raises UsageError."""
        found = _PREFIX.match(text.strip())
        device, rest = (found[1], text.strip()[found.end() :]) if found else ("", text.strip())
        words = split(rest)
        if not words:
            raise UsageError(f"{text!r} is no operation: write one such as 'read 0 8'")
        verb, *arguments = words
        if verb not in _VERBS:
            raise UsageError(f"{verb!r} is not an operation; known: {', '.join(_VERBS)}")
        form = _VERBS[verb].form
        least = sum(1 for word in form.split() if not word.startswith("["))
        most = None if form.endswith("...]") else len(form.split())
        if len(arguments) < least or (most is not None and len(arguments) > most):
            raise UsageError(f"{text!r}: write it as {f'{verb} {form}'.strip()!r}")
        return cls(device, " ".join(rest.split()), verb, tuple(arguments))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an operation: lines for people, values for programs, an error's name or none.

    `reason` says more about an error, in words that differ between engines.
    """

    device: str
    operation: Operation
    lines: tuple[str, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    reason: str = ""

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


class Session:
    """Devices made for the length of a `with` block, and operations on them, in order.

    Tables name other devices of the session as /dev/mapper/NAME. Without a name, an operation is
    for the last device: the top of a stack.
    """

    def __init__(self, engine: Engine, devices: list[ConciseDevice]) -> None:
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
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as exits:
            for name, device in self.devices.items():
                made = self._names[name]
                table = device.table.with_devices(self._find)
                exits.enter_context(self.mapper.device(made, table, readonly=device.readonly))
                exits.callback(self.engine.forget, made)
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

    def run(self, operation: Operation) -> Outcome:
        """Run one operation. What the device or the engine refuses is in the outcome.

        Raises UsageError for words that make no sense.
        """
        self.check(operation)
        name = operation.device or list(self.devices)[-1]
        try:
            result = _VERBS[operation.verb].run(self, self._names[name], *operation.words)
        except DeviceError as error:
            number = errno.errorcode.get(error.errno, "EIO")
            return Outcome(name, operation, error=number, reason=str(error))
        except (MismatchError, _RefusedError) as error:
            return Outcome(name, operation, error=str(error))
        return Outcome(name, operation, *result)

    def opened(self, name: str) -> Handle:
        """Return the open device `name`, unless I/O to it would wait for ever."""
        if self.mapper.info(name).suspended:
            raise _RefusedError("suspended: its I/O would wait until it is resumed")
        return self.engine.open(name)

    def place(self, name: str, sector: str, count: str) -> tuple[int, int]:
        """Return a range of the device, which must be on it."""
        start, length = parse_sectors(sector), parse_sectors(count)
        size = self.mapper.table(name).length
        if not length or start + length > size:
            raise _RefusedError(f"not within the {size} sectors of the device")
        return start, length

    def named(self, table: Table) -> Table:
        """Return a table with the devices as the caller named them."""
        return table.with_devices(self.label)

    def table(self, words: tuple[str, ...]) -> Table:
        """Return the table of one line that an operation gives, for the engine."""
        return Table.parse(" ".join(words)).with_devices(self._find)

    def label(self, device: str) -> str:
        """Return what the caller called a device that the engine names by number or path."""
        return self._labels.get(device, device)

    def _find(self, word: str) -> str:
        path = self._lower.get(word) or self.engine.lower(word)
        self._label(word, path)
        return path

    def _label(self, word: str, path: str) -> None:
        self._labels[path] = self._labels[os.path.realpath(path)] = word
        with contextlib.suppress(OSError):
            number = os.stat(path).st_rdev
            if number:
                self._labels[f"{os.major(number)}:{os.minor(number)}"] = word


class _RefusedError(Exception):
    """An operation that cannot be done as things are; not one that is wrong in itself."""


def exit_code(outcomes: list[Outcome]) -> ExitCode:
    """Return what a command that ran these ends with: 4 for what differs, 1 for what failed."""
    failed = [outcome for outcome in outcomes if outcome.error]
    if any(outcome.operation.verb == "verify" and not outcome.reason for outcome in failed):
        return ExitCode.MISMATCH
    return ExitCode.FAILED if failed else ExitCode.OK


def pattern(word: str, sector: int, count: int) -> bytes:
    """Return the content that `word` stands for: a byte, as in 90 or 0x5a, or `seq[:SEED]`.

    `seq` is different in every sector, so that one at a wrong place is seen. Raises UsageError.
    """
    kind, colon, seed = word.partition(":")
    if kind == "seq" and bool(colon) == bool(seed):
        line = f"{seed or 'seq'} {{:>16}}\n"
        return b"".join(_sector(line.format(number)) for number in range(sector, sector + count))
    with contextlib.suppress(ValueError):
        return bytes([int(word, 0)]) * (count << SECTOR_SHIFT)
    raise UsageError(f"{word!r} is not a pattern: write a byte (0x5a), seq, or seq:SEED")


def _sector(line: str) -> bytes:
    text = line.encode()
    return (text * (SECTOR_SIZE // len(text) + 1))[:SECTOR_SIZE]


_Result = tuple[tuple[str, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Verb:
    form: str
    help: str
    run: Callable[..., _Result]


def _read(session: Session, name: str, sector: str, count: str) -> _Result:
    data = session.opened(name).read(*session.place(name, sector, count))
    digest, head = hashlib.sha256(data).hexdigest(), data[:_HEAD_BYTES].hex(" ")
    line = f"sha256 {digest[:_DIGEST_LETTERS]}, {head} ..."
    return (line,), {"sha256": digest, "head": head}


def _write(session: Session, name: str, sector: str, count: str, word: str) -> _Result:
    start, length = session.place(name, sector, count)
    session.opened(name).write(start, pattern(word, start, length))
    return (), {}


def _verify(session: Session, name: str, sector: str, count: str, word: str) -> _Result:
    start, length = session.place(name, sector, count)
    expected = pattern(word, start, length)
    data = session.opened(name).read(start, length)
    if data == expected:
        return (), {}
    pairs = enumerate(zip(data, expected, strict=True))
    at = next(index for index, (found, wanted) in pairs if found != wanted)
    where = f"sector {start + (at >> SECTOR_SHIFT)}, byte {at % SECTOR_SIZE}"
    raise MismatchError(f"differs at {where}: 0x{data[at]:02x} instead of 0x{expected[at]:02x}")


def _flush(session: Session, name: str) -> _Result:
    session.opened(name).flush()
    return (), {}


def _discard(session: Session, name: str, sector: str, count: str) -> _Result:
    session.opened(name).discard(*session.place(name, sector, count))
    return (), {}


def _status(session: Session, name: str) -> _Result:
    found = session.mapper.status(name)
    named = (replace(line, status=line.status.with_devices(session.label)) for line in found)
    lines = tuple(str(line).rstrip() for line in named)
    return lines, {"status": list(lines)}


def _table(session: Session, name: str) -> _Result:
    lines = tuple(map(str, session.named(session.mapper.table(name))))
    return lines, {"table": list(lines)}


def _message(session: Session, name: str, sector: str, *words: str) -> _Result:
    answer = session.mapper.message(name, *words, sector=parse_sectors(sector))
    return tuple(answer.splitlines()), {"answer": answer}


def _load(session: Session, name: str, *words: str) -> _Result:
    session.mapper.load(name, session.table(words))
    return (), {}


def _suspend(session: Session, name: str, how: str = "") -> _Result:
    if how not in ("", "noflush"):
        raise UsageError(f"{how!r}: write 'suspend' or 'suspend noflush'")
    session.mapper.suspend(name, flush=not how)
    return (), {}


def _resume(session: Session, name: str) -> _Result:
    session.engine.forget(name)
    session.mapper.resume(name)
    return (), {}


def _sleep(session: Session, name: str, seconds: str) -> _Result:
    del name
    try:
        session.engine.sleep(float(seconds))
    except ValueError:
        raise UsageError(f"{seconds!r} is not a number of seconds") from None
    return (), {}


_VERBS: Final = {
    "read": _Verb("SECTOR COUNT", "print the digest and the first bytes", _read),
    "write": _Verb("SECTOR COUNT PATTERN", "PATTERN: a byte, seq or seq:SEED", _write),
    "verify": _Verb("SECTOR COUNT PATTERN", "read, and compare", _verify),
    "flush": _Verb("", "make what was written durable", _flush),
    "discard": _Verb("SECTOR COUNT", "give up the content", _discard),
    "status": _Verb("", "as dmsetup prints it", _status),
    "table": _Verb("", "as dmsetup prints it, with the names that were given", _table),
    "message": _Verb("SECTOR WORD [WORD...]", "send words to the target at SECTOR", _message),
    "load": _Verb("START LENGTH TARGET [WORD...]", "a table, which resume makes active", _load),
    "suspend": _Verb("[noflush]", "hold new I/O", _suspend),
    "resume": _Verb("", "let I/O go on", _resume),
    "sleep": _Verb("SECONDS", "let time pass", _sleep),
}


def help_text() -> str:
    """Return a line about each operation."""
    rows = [(f"{verb} {one.form}".strip(), one.help) for verb, one in _VERBS.items()]
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"  {left:<{width}}  {right}" for left, right in rows)
