"""The same steps on two engines, and where they differ first.

    with compare.pair({"disk0": 2048}) as (kernel, user):    # as root, with device-mapper
        steps = [Load("dev", "0 2048 linear @disk0 0"), Resume("dev"), *bursts(7, "dev", 2048)]
        difference = compare.first_difference(steps, kernel, user)
        assert difference is None, difference

A target of your own is held to the kernel's by `instead={"snapshot": "my-snapshot"}`: the second
engine then has it where the steps say `snapshot`. `engines=("user", "user")` compares two targets
in userspace, without root.

A `Side` is an engine with disks of its own, and devices that are called by the names that the steps
have for them. `Comparison` plays the steps; what is compared after which step, and how long it may
take until both show the same, is in methods that a suite of its own overrides.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from dmcopy.errors import DeadlineError, DeviceError
from dmcopy.io import Io, IoRegion, Memory, Op, Reactor
from dmcopy.io.region import Device
from dmcopy.io.threads import ThreadsBackend
from dmcopy.mapper.base import PREFIX
from dmcopy.mapper.engines import EngineName
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.mapped_io import MappedIo
from dmcopy.mapper.userspace import UserMapper
from dmcopy.table import Table
from dmcopy.testing.disks import Disks
from dmcopy.testing.steps import Access, Step
from dmcopy.units import PAGE_SIZE, SECTOR_SHIFT

WAIT_SECONDS: Final = 60.0
PATIENCE_SECONDS: Final = 20.0
MOST_IN_FLIGHT: Final = 128
_MOMENT: Final = 0.003
_SHOWN_STEPS: Final = 60


@dataclass(frozen=True)
class Result:
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


class Side:
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
        """Suspend a device."""
        self.mapper.suspend(self.prefix + name, flush=flush)

    def resume(self, name: str) -> None:
        """Resume a device."""
        self.mapper.resume(self.prefix + name)

    def swap(self, name: str, text: str, *, readonly: bool = False) -> None:
        """Put another table in place of the active one."""
        self.load(name, text, readonly=readonly)
        self.suspend(name)
        self.resume(name)

    def remove(self, name: str) -> None:
        """Remove a device."""
        if name in self._open:
            self._open.pop(name).close()
        self.mapper.remove(self.prefix + name)
        self._names = {word: one for word, one in self._names.items() if one != name}

    def message(self, name: str, *words: str, sector: int = 0) -> str:
        """Send words to the target at `sector`."""
        return self.mapper.message(self.prefix + name, *words, sector=sector)

    def status(self, name: str) -> str:
        """Return the status lines."""
        return self.plain(self.mapper.status(self.prefix + name))

    def words(self, name: str) -> str:
        """Return the words of the status behind the target's name, "; " between lines."""
        return "; ".join(str(line.status) for line in self.mapper.status(self.prefix + name))

    def table(self, name: str, *, inactive: bool = False) -> str:
        """Return the lines of the table."""
        return self.plain(self.mapper.table(self.prefix + name, inactive=inactive))

    def events(self, name: str) -> int:
        """Return the number of events so far."""
        return self.mapper.info(self.prefix + name).events

    def look(self, name: str) -> View:
        """Return what is seen of a device."""
        info = self.mapper.info(self.prefix + name)
        return View(self.status(name), self.table(name), info.events, info.readonly)

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

    def perform(self, *accesses: Access) -> list[Result]:
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
        """Let a moment pass."""
        with contextlib.suppress(DeadlineError):
            self.reactor.run_until(lambda: False, seconds)

    def do(self, step: Step) -> object:
        """Do a step; return what came of it, or the name of its errno."""
        try:
            return step.do(self)
        except DeviceError as error:
            return errno.errorcode.get(error.errno, "EIO")

    def contents(self) -> dict[str, list[Result]]:
        """Read every device that has a table and is not suspended."""
        found: dict[str, list[Result]] = {}
        for name in self.devices:
            info = self.mapper.info(self.prefix + name)
            if info.live and not info.suspended:
                found[name] = self.perform(Access(Op.READ, name, 0, self.open(name).sectors))
        return found

    def _word(self, word: str) -> str:
        name = self._names.get(word) or self.disks.words.get(word)
        return f"@{name}" if name else self._back.get(word, word)


class DifferenceError(AssertionError):
    """Two engines differ in `what`, after the steps `steps`; `found`: what each of them shows."""

    def __init__(self, what: str, found: Mapping[str, object], steps: list[Step]) -> None:
        self.what = what
        self.found = dict(found)
        self.steps = list(steps)
        shown = "".join(f"\n{label}: {value}" for label, value in self.found.items())
        history = "".join(f"\n  {step}" for step in self.steps[-_SHOWN_STEPS:])
        super().__init__(f"{what} differs after step {len(self.steps)}{shown}\nsteps:{history}")


class Comparison:
    """Steps played on two sides. `patience`: how many seconds both may take to show the same.

    `disks`: those of which the content is compared at the end; by default all.
    """

    def __init__(
        self,
        one: Side,
        other: Side,
        *,
        patience: float = PATIENCE_SECONDS,
        disks: Iterable[str] | None = None,
    ) -> None:
        self.sides = one, other
        self.patience = patience
        self.steps: list[Step] = []
        self._disks = list(one.disks.sizes if disks is None else disks)

    def play(self, steps: Iterable[Step]) -> None:
        """Play steps to their end. Raises DifferenceError at the first difference."""
        for step in steps:
            self.do(step)
        self.at_end()

    def do(self, step: Step) -> None:
        """Play one step, and compare."""
        self.steps.append(step)
        self.same("the step's result", *(side.do(step) for side in self.sides))
        self.after(step)

    def after(self, step: Step) -> None:
        """Compare what is to be the same after a step."""
        del step
        for name in self.sides[0].devices:
            self.agree(f"{name}: status, table or events", lambda side: side.look(name))  # noqa: B023 - called before the next one

    def at_end(self) -> None:
        """Compare what is to be the same at the end: what devices and disks hold."""
        self.same("content", *(side.contents() for side in self.sides))
        for disk in self._disks:
            self.same_bytes(f"disk {disk}", *(side.disks.peek(disk) for side in self.sides))

    def agree(self, what: str, look: Callable[[Side], object]) -> None:
        """Compare what the sides show as soon as it is the same, or `patience` is over."""
        deadline = time.monotonic() + self.patience
        while True:
            found = [look(side) for side in self.sides]
            if found[0] == found[1] or time.monotonic() > deadline:
                break
            for side in self.sides:
                side.step()
        self.same(what, *found)

    def same(self, what: str, one: object, other: object) -> None:
        """Raise DifferenceError unless the two are the same."""
        if one != other:
            labels = [side.label for side in self.sides]
            if labels[0] == labels[1]:
                labels = ["first", "second"]
            raise DifferenceError(what, dict(zip(labels, (one, other), strict=True)), self.steps)

    def same_bytes(self, what: str, one: bytes, other: bytes) -> None:
        """Raise DifferenceError with the first sector in which two contents differ."""
        if (place := first_byte(one, other)) is not None:
            near = [data[place & ~511 : (place | 511) + 1].hex(" ", 4) for data in (one, other)]
            self.same(f"{what}, from byte {place & 511} of sector {place >> SECTOR_SHIFT},", *near)


def first_difference(
    steps: Iterable[Step],
    one: Side,
    other: Side,
    *,
    patience: float = PATIENCE_SECONDS,
    disks: Iterable[str] | None = None,
) -> DifferenceError | None:
    """Play steps on both sides; return where they differ first. See `Comparison`."""
    try:
        Comparison(one, other, patience=patience, disks=disks).play(steps)
    except DifferenceError as difference:
        return difference
    return None


@contextlib.contextmanager
def pair(
    disks: Mapping[str, int],
    *,
    engines: tuple[EngineName, EngineName] = ("kernel", "user"),
    sector_size: int = 512,
    instead: Mapping[str, str] | None = None,
) -> Iterator[tuple[Side, Side]]:
    """Start two engines for the length of a `with` block, each with disks of its own in memory.

    `disks`: their sizes in sectors, by their names; `sector_size`: of their blocks, in bytes.
    `instead`: targets of the second engine, by the names of those that the steps have; see `Side`.
    At the end every device that the steps have left is removed.
    """
    with contextlib.ExitStack() as exits:
        parent = "/dev/shm" if os.path.isdir("/dev/shm") else None
        folder = exits.enter_context(tempfile.TemporaryDirectory(dir=parent, prefix=PREFIX))
        sides = []
        for number, name in enumerate(engines):
            mapper = exits.enter_context(_mapper(name))
            loops = name == "kernel" or sector_size != 512
            place = Path(folder, str(number))
            made = exits.enter_context(Disks(place, disks, loops=loops, sector_size=sector_size))
            prefix = f"{PREFIX}{os.urandom(3).hex()}-" if name == "kernel" else ""
            side = Side(name, mapper, made, prefix=prefix, instead=instead if number else None)
            exits.callback(side.close)
            sides.append(side)
        yield sides[0], sides[1]


def kernel_reactor() -> Reactor:
    """Return a reactor for a `KernelMapper` that is compared.

    On threads: a write that is held has one wait for it, and none must wait for a free one; and a
    durable write flushes, as `Side.start` has it.
    """
    return Reactor(functools.partial(ThreadsBackend, workers=MOST_IN_FLIGHT), stacked=True)


@contextlib.contextmanager
def _mapper(name: EngineName) -> Iterator[KernelMapper | UserMapper]:
    if name == "user":
        with UserMapper() as user:
            yield user
        return
    with kernel_reactor() as reactor, KernelMapper(reactor=reactor) as kernel:
        yield kernel


def has_ended(request: Io) -> bool:
    """Whether a request that `Side.start` began has ended."""
    return request.context is True


def result(request: Io) -> Result:
    """Return what became of a request that has ended."""
    error = errno.errorcode.get(request.error, str(request.error)) if request.error else ""
    data = b""
    if request.op == Op.READ and not error and request.memory is not None:
        data = request.memory.read(request.extents)
    return Result(request.op.name, error, data)


def first_byte(one: bytes, other: bytes) -> int | None:
    """Return where two contents differ first; None where they do not."""
    if one == other:
        return None
    pages = (slice(start, start + PAGE_SIZE) for start in range(0, len(one), PAGE_SIZE))
    page = next((page for page in pages if one[page] != other[page]), slice(len(one), None))
    pairs = enumerate(zip(one[page], other[page], strict=False), page.start)
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _end(request: Io) -> None:
    request.context = True
