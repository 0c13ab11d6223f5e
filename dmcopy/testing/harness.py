"""An engine whose disks and devices are called by names of a test's own, and I/O on them.

`dmcopy.testing.compare` plays steps on two.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from dmcopy.errors import DeadlineError, DeviceError
from dmcopy.io import Io, IoRegion, Memory, Op
from dmcopy.io.region import Device
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.mapped_io import MappedIo
from dmcopy.mapper.userspace import UserMapper
from dmcopy.table import Table
from dmcopy.testing.access import Access
from dmcopy.testing.disks import Disks
from dmcopy.units import PAGE_SIZE, SECTOR_SHIFT

WAIT_SECONDS: Final = 60.0
_MOMENT: Final = 0.003


@dataclass(frozen=True)
class RequestResult:
    """What became of a request: the name of its errno, "" if it went well, and what was read."""

    op: str
    error: str = ""
    data: bytes = field(default=b"", repr=False)

    def __str__(self) -> str:
        digest = hashlib.sha256(self.data).hexdigest()[:16] if self.data else ""
        return f"{self.op}: {self.error or digest or 'done'}"

    __repr__ = __str__


class View(NamedTuple):
    """What is seen of a device: lines, with the disks and devices as the steps name them."""

    status: str
    table: str
    events: int
    readonly: bool


class Step(Protocol):
    """One thing to do to a harness; see `dmcopy.testing.steps`."""

    def do(self, harness: Harness, /) -> object:
        """Do it. Raises DeviceError."""


class Harness:
    """An engine, its disks, and devices with a `prefix` before the names that the steps have.

    `instead`: the targets of this engine that stand for those of the steps, by their names; lines
    have the steps' names again.
    """

    def __init__(
        self,
        label: str,
        mapper: KernelMapper | UserMapper,
        disks: Disks,
        *,
        prefix: str = "",
        instead: Mapping[str, str] | None = None,
    ) -> None:
        self.label = label
        self.mapper = mapper
        self.reactor = mapper.reactor
        self.disks = disks
        self.prefix = prefix
        self._instead = dict(instead or {})
        self._back = {ours: theirs for theirs, ours in self._instead.items()}
        self._names: dict[str, str] = {}  # of devices, by the words that tables have for them
        self._open: dict[str, MappedIo] = {}

    def close(self) -> None:
        """Remove the devices that are left, the last one first. The engine and disks stay."""
        for name in reversed(dict.fromkeys(self._names.values())):
            self.mapper.thaw(self.prefix + name)
            self.remove(name)

    # Devices and tables

    @property
    def devices(self) -> list[str]:
        """The devices that were made here, in order."""
        return list(dict.fromkeys(self._names.values()))

    def path(self, name: str) -> str:
        """Return the path of a disk or device."""
        return self.disks.paths.get(name) or self.mapper.path(self.prefix + name)

    def parse(self, text: str) -> Table:
        """Return the table of a text, in which @NAME is a disk or a device."""
        text = re.sub(r"(?<=\s)@(\S+)", lambda word: self.path(word[1]), text)
        for theirs, ours in self._instead.items():
            text = re.sub(rf"^(\s*\d+\s+\d+\s+){re.escape(theirs)}(?!\S)", rf"\g<1>{ours}", text,
                          flags=re.MULTILINE)  # fmt: skip
        return Table.parse(text)

    def plain(self, lines: Iterable[object]) -> str:
        """Return lines of a status or a table, with the steps' names in them."""
        return "\n".join(" ".join(map(self._word, str(line).split())) for line in lines)

    def create(self, name: str, text: str = "", *, readonly: bool = False) -> None:
        """Make a device, without a table where `text` is empty."""
        full = self.prefix + name
        self.mapper.create(full, self.parse(text) if text else None, readonly=readonly)
        self._names[self.mapper.path(full)] = name
        if devno := self.mapper.info(full).devno:
            self._names[devno] = name

    def load(self, name: str, text: str, *, readonly: bool = False) -> None:
        """Load a table beside the active one, and make the device if it is not there."""
        if name not in self._names.values() and not self.mapper.exists(self.prefix + name):
            self.create(name)
        self.mapper.load(self.prefix + name, self.parse(text), readonly=readonly)

    def suspend(self, name: str, *, flush: bool = True) -> None:
        self.mapper.suspend(self.prefix + name, flush=flush)

    def resume(self, name: str) -> None:
        self.mapper.resume(self.prefix + name)

    def swap(self, name: str, text: str, *, readonly: bool = False, flush: bool = True) -> None:
        """Put another table in place of the active one."""
        self.load(name, text, readonly=readonly)
        self.suspend(name, flush=flush)
        self.resume(name)

    def remove(self, name: str) -> None:
        if name in self._open:
            self._open.pop(name).close()
        self.mapper.remove(self.prefix + name)
        self._names = {word: one for word, one in self._names.items() if one != name}

    def message(self, name: str, *words: str, sector: int = 0) -> str:
        """Send words to the target at `sector`."""
        return self.mapper.message(self.prefix + name, *words, sector=sector)

    def status(self, name: str) -> str:
        return self.plain(self.mapper.status(self.prefix + name))

    def words(self, name: str) -> str:
        """Return the words of the status behind the target's name, "; " between lines."""
        return "; ".join(str(line.status) for line in self.mapper.status(self.prefix + name))

    def table(self, name: str, *, inactive: bool = False) -> str:
        return self.plain(self.mapper.table(self.prefix + name, inactive=inactive))

    def events(self, name: str) -> int:
        """Return the number of events so far."""
        return self.mapper.info(self.prefix + name).events

    def look(self, name: str) -> View:
        """Return what is seen of a device."""
        info = self.mapper.info(self.prefix + name)
        return View(self.status(name), self.table(name), info.events, info.readonly)

    def looks(self) -> dict[str, View]:
        """Return what is seen of every device, asked for together: a call of dmsetup is slow."""
        infos = {info.name: info for info in self.mapper.ls()}
        tables, statuses = self.mapper.active_tables(), self.mapper.statuses()
        found: dict[str, View] = {}
        for name in self.devices:
            full = self.prefix + name
            status, table = self.plain(statuses.get(full, ())), self.plain(tables.get(full, ()))
            found[name] = View(status, table, infos[full].events, infos[full].readonly)
        return found

    # I/O

    def open(self, name: str) -> MappedIo:
        """Return the device, open until it is removed."""
        if name not in self._open:
            self._open[name] = self.mapper.open(self.prefix + name)
        return self._open[name]

    def start(self, access: Access) -> Io:
        """Begin a request. `has_ended` tells when it has."""
        region = IoRegion(self.open(access.device), access.sector, access.count)
        if access.op in (Op.READ, Op.WRITE):
            size = access.count << SECTOR_SHIFT
            memory = Memory(max(1, -(-size // PAGE_SIZE)))
            if access.op == Op.WRITE:
                memory.fill([(0, size)], access.data)
            request = Io(access.op, region, memory, [(0, size)], _end, fua=access.fua)
        else:
            request = Io(access.op, region, notify=_end)
        if access.fua and isinstance(self.mapper, UserMapper):
            request.notify = functools.partial(self._sync, request.device)
        self.reactor.submit(request)
        return request

    def _sync(self, device: Device, write: Io) -> None:
        """Flush, too, as pwritev2 does behind a durable write that went well (generic_write_sync).

        To a mirror that is not the same: a leg that fails the flush makes every region that is
        written later fall out of sync (flush_failure in dm-region-hash.c).
        """
        if write.error:
            _end(write)
            return

        def flushed(flush: Io) -> None:
            write.error = flush.error
            _end(write)

        self.reactor.submit(Io(Op.FLUSH, IoRegion(device, 0, 0), notify=flushed))

    def perform(self, *accesses: Access) -> list[RequestResult]:
        """Have requests in flight together, and wait for all of them."""
        requests = [self.start(access) for access in accesses]
        self.reactor.run_until(lambda: all(map(has_ended, requests)), WAIT_SECONDS, f"{accesses}")
        return [result(request) for request in requests]

    def wait(self, done: Callable[[], bool], what: str) -> None:
        """Let time pass until `done`. Raises DeadlineError."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not done():
            if time.monotonic() > deadline:
                raise DeadlineError(f"{self.label}: waited {WAIT_SECONDS:g} s for {what}")
            self.step()

    def step(self, seconds: float = _MOMENT) -> None:
        """Let a few milliseconds pass."""
        with contextlib.suppress(DeadlineError):
            self.reactor.run_until(lambda: False, seconds)

    def do(self, step: Step) -> object:
        """Do a step; return what came of it, or the name of its errno."""
        try:
            return step.do(self)
        except DeviceError as error:
            return errno.errorcode.get(error.errno, "EIO")

    def contents(self, names: Iterable[str] | None = None) -> dict[str, list[RequestResult]]:
        """Read every device, or those of `names`, that has a table and is not suspended."""
        found: dict[str, list[RequestResult]] = {}
        for name in self.devices if names is None else names:
            info = self.mapper.info(self.prefix + name)
            if info.live and not info.suspended:
                found[name] = self.perform(Access(Op.READ, name, 0, self.open(name).sectors))
        return found

    def _word(self, word: str) -> str:
        name = self._names.get(word) or self.disks.words.get(word)
        return f"@{name}" if name else self._back.get(word, word)


def has_ended(request: Io) -> bool:
    """Whether a request that `Harness.start` began has ended."""
    return request.context is True


def result(request: Io) -> RequestResult:
    """Return what became of a request that has ended."""
    error = errno.errorcode.get(request.error, str(request.error)) if request.error else ""
    data = b""
    if request.op == Op.READ and not error and request.memory is not None:
        data = request.memory.read(request.extents)
    return RequestResult(request.op.name, error, data)


def _end(request: Io) -> None:
    request.context = True
