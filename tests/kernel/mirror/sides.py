"""Both engines, each with its own disks: legs a to d and a log l, every one under a linear device.

What a test does, it does to both; `look` returns everything that must then be the same.
"""

from __future__ import annotations

import abc
import errno
import functools
import hashlib
import mmap
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmcopy.block.loop import LoopDevice, attach, detach
from dmcopy.errors import DeadlineError
from dmcopy.io import IoRegion, Reactor
from dmcopy.io.region import Device
from dmcopy.io.request import Io, Memory, Op
from dmcopy.io.threads import ThreadsBackend
from dmcopy.ledger import Ledger
from dmcopy.mapper.base import Mapper
from dmcopy.mapper.userspace import UserMapper
from dmcopy.table import Table
from dmcopy.targets.mirror import Mirror
from dmcopy.targets.mirror_set import Module
from tests.kernel.snapshot.engines import open_anyway
from tests.kernel.snapshot.ioctls import IoctlMapper

LEGS = "abcd"
DISKS = LEGS + "l"
SECTORS = 2048
LOG_SECTORS = 16
DONE_SECONDS = 120.0
HELD_SECONDS = 0.4
MOMENT_SECONDS = 0.02
MOST_HELD = 128
ALWAYS = 1 << 20  # seconds that a flakey target is bad


@dataclass
class Look:
    """What can be seen of a mirror and its disks from outside."""

    status: str
    table: str
    events: int
    readonly: bool
    outcomes: list[Any]
    log: bytes

    def differs(self, other: Look) -> list[str]:
        """Say in what two looks differ, ours first."""
        found = [
            f"{name}: ours {getattr(self, name)!r}, the kernel's {getattr(other, name)!r}"
            for name in ("status", "table", "events", "readonly")
            if getattr(self, name) != getattr(other, name)
        ]
        for number, pair in enumerate(zip(self.outcomes, other.outcomes, strict=True)):
            if pair[0] != pair[1]:
                found.append(
                    f"outcome of request {number}: ours {pair[0]!r}, the kernel's {pair[1]!r}"
                )
        if self.log != other.log:
            logs = [f"{one.log[:16].hex()} {one.log[1024:1056].hex()}" for one in (self, other)]
            found.append(f"log: ours {logs[0]}, the kernel's {logs[1]}")
        return found


class Side(abc.ABC):
    """An engine. Its mirror is called m, the devices under it are called as the disks."""

    mapper: Mapper
    reactor: Reactor
    prefix: str

    def __init__(self, folder: Path) -> None:
        self.files = {disk: folder / disk for disk in DISKS}
        self.loops: dict[str, LoopDevice] = {}
        self._maps: dict[str, mmap.mmap] = {}
        for disk, file in self.files.items():
            file.touch()
            os.truncate(file, sectors(disk) << 9)
            self.loops[disk] = attach(file)
            with file.open("r+b") as backing:
                self._maps[disk] = mmap.mmap(backing.fileno(), 0)
        self._faulty: set[str] = set()
        self._requests: list[Io] = []
        self._outcomes: list[Any] = []
        self._device: Any = None

    def open(self) -> None:
        """Make the devices under the legs and the log."""
        for disk in DISKS:
            self.mapper.create(self.prefix + disk, self._healthy(disk))

    def close(self) -> None:
        """Remove everything."""
        for disk in DISKS:
            self.mapper.remove(self.prefix + disk)
        for disk, loop in self.loops.items():
            detach(loop)
            self._maps[disk].close()
            self.files[disk].unlink()

    # The disks.

    def poke(self, disk: str, data: bytes, offset: int = 0) -> None:
        """Write to a disk, below everything."""
        self._maps[disk][offset : offset + len(data)] = data

    def peek(self, disk: str) -> bytes:
        """Read a disk, below everything."""
        return self._maps[disk][:]

    def fault(self, disk: str, *lines: str) -> None:
        """Put other lines over a disk; `@` in them is the disk."""
        text = "\n".join(lines).replace("@", self.loops[disk].path)
        self._put(disk, Table.parse(text))
        self._faulty.add(disk)

    def heal(self, *disks: str) -> None:
        """Make disks good again; without a word all that are not."""
        for disk in disks or tuple(self._faulty):
            self._put(disk, self._healthy(disk))
            self._faulty.discard(disk)

    def _put(self, disk: str, table: Table) -> None:
        self.mapper.swap(self.prefix + disk, table, flush=False, lockfs=False)

    def _healthy(self, disk: str) -> Table:
        return Table.parse(f"0 {sectors(disk)} linear {self.loops[disk].path} 0")

    # The mirror.

    def parse(self, text: str) -> Table:
        """Return a table; a, b, c, d and l are the devices under the legs and the log."""
        return Table.parse(text).with_devices(lambda word: self.mapper.path(self.prefix + word))

    def create(self, text: str, *, readonly: bool = False) -> None:
        """Make the mirror."""
        self._requests, self._outcomes = [], []
        self.mapper.create(self.prefix + "m")
        self.load(text, readonly=readonly)
        self.resume()
        self._device = self._open()

    @abc.abstractmethod
    def _open(self) -> Any: ...

    def remove(self) -> None:
        """Remove the mirror; what is held ends."""
        if not all(self._ended(request) for request in self._requests):
            self.mapper.suspend(self.prefix + "m", lockfs=False)
            self.mapper.resume(self.prefix + "m", lockfs=False)
            self.wait(lambda: all(map(self._ended, self._requests)), "what was held")
        self._forget()
        self.mapper.remove(self.prefix + "m")

    @abc.abstractmethod
    def _forget(self) -> None: ...

    def suspend(self, flush: bool) -> None:
        """Suspend the mirror."""
        self.mapper.suspend(self.prefix + "m", flush=flush, lockfs=False)

    def resume(self) -> None:
        """Resume the mirror."""
        self.mapper.resume(self.prefix + "m", lockfs=False)

    def load(self, text: str, *, readonly: bool = False) -> None:
        """Load another table for the mirror."""
        self.mapper.load(self.prefix + "m", self.parse(text), readonly=readonly)

    def start(
        self, op: Op, sector: int, count: int, data: bytes = b"", *, fua: bool = False
    ) -> int:
        """Begin a request; return its number."""
        memory = Memory(max(1, -(-count // 8)))
        extents = [(0, count << 9)]
        if data:
            memory.fill(extents, data)
        request = Io(op, IoRegion(self._device, sector, count), memory, extents, _ended, fua=fua)
        self._requests.append(request)
        self._outcomes.append("held")
        self._submit(request)
        return len(self._requests) - 1

    def _submit(self, request: Io) -> None:
        self.reactor.submit(request)

    def _ended(self, request: Io) -> bool:
        return request.context is True

    def has_ended(self, number: int) -> bool:
        """Whether a request has."""
        return self._ended(self._requests[number])

    def is_held(self, sector: int, count: int) -> bool:
        """Whether a write to any of these sectors has not ended."""
        return any(
            request.op == Op.WRITE
            and not self._ended(request)
            and request.sector < sector + count
            and sector < request.sector + request.count
            for request in self._requests
        )

    def wait(self, done: Any, what: str) -> None:
        """Wait until `done()`; raises DeadlineError."""
        self.reactor.run_until(done, DONE_SECONDS, what)

    def step(self) -> None:
        """Let a moment pass."""
        try:
            self.reactor.run_until(lambda: False, 0.003)
        except DeadlineError:
            pass

    def status(self) -> str:
        """Return the mirror's status line."""
        (line,) = self.mapper.status(self.prefix + "m")
        return self._plain(str(line))

    def look(self) -> Look:
        """Return everything that can be seen."""
        for number, request in enumerate(self._requests):
            if self._outcomes[number] == "held" and self._ended(request):
                self._outcomes[number] = _outcome(request)
        info = self.mapper.info(self.prefix + "m")
        return Look(
            self.status(),
            self._plain(str(self.mapper.table(self.prefix + "m"))),
            info.events,
            info.readonly,
            list(self._outcomes),
            self.peek("l"),
        )

    def _plain(self, text: str) -> str:
        """Return a line with the names of the disks for the devices."""
        names = self._names()
        return " ".join(names.get(word, word) for word in text.split())

    @abc.abstractmethod
    def _names(self) -> dict[str, str]: ...


class UserSide(Side):
    """dmcopy's own engine."""

    prefix = ""
    mapper: UserMapper

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.mapper = UserMapper()
        # With several regions at a time, more of them were begun when a default leg fails.
        self.mapper.module(Module).recovery = "kernel"
        self.reactor = self.mapper.reactor
        self.reactor.on_exception = self.unexpected.append
        self.open()

    @property
    def unexpected(self) -> list[BaseException]:
        """What was raised inside of the engine."""
        self._unexpected: list[BaseException] = getattr(self, "_unexpected", [])
        return self._unexpected

    def close(self) -> None:
        """Remove everything."""
        super().close()
        self.mapper.close()

    @property
    def _mirror(self) -> Mirror | None:
        """The target, if the device has one that is a mirror."""
        table = self.mapper.open("m").active
        target = table.targets[0] if table else None
        return target if isinstance(target, Mirror) else None

    @property
    def held(self) -> int:
        """How many bios are held; a write that was cut at a region counts more than once."""
        return self._mirror.work.held if self._mirror else 0

    @property
    def has_a_valid_leg(self) -> bool:
        """Whether one of the legs has not failed."""
        return self._mirror is None or self._mirror.legs.first_ok is not None

    @property
    def holds_a_flush(self) -> bool:
        """Whether one of the bios that are held is a flush."""
        return self._mirror is not None and any(
            bio.op == Op.FLUSH for bio in self._mirror.work._holds
        )

    def settle(self) -> None:
        """Let everything happen that happens by itself."""
        device = self.mapper.open("m")
        mirror = self._mirror

        def quiet() -> bool:
            if mirror is None:
                return True
            work = mirror.work
            below = any(self.mapper.open(disk).in_flight for disk in DISKS)
            copying = work._client.statistics().jobs  # a recovery may wait for a held write
            held = bool(device.in_flight) == bool(work.held)
            soon = self.reactor.next_due() == 0
            return held and work._worker.idle and not below and not copying and not soon

        self.wait(quiet, "the engine to be quiet")
        assert not self.unexpected

    def _submit(self, request: Io) -> None:
        if request.fua:
            request.notify = self._sync
        super()._submit(request)

    def _sync(self, write: Io) -> None:
        """Flush, too, as pwritev2 does behind a durable write that went well (generic_write_sync).

        To a mirror that is not the same: a leg that fails the flush makes every region that is
        written later fall out of sync (flush_failure in dm-region-hash.c).
        """
        if write.error:
            _ended(write)
            return

        def flushed(flush: Io) -> None:
            write.error = flush.error
            _ended(write)

        super()._submit(Io(Op.FLUSH, IoRegion(self._device, 0, 0), notify=flushed))

    def _open(self) -> Any:
        return self.mapper.open("m")

    def _forget(self) -> None:
        pass

    def _names(self) -> dict[str, str]:
        return {self.mapper.path(disk): disk for disk in DISKS}


class KernelSide(Side):
    """The kernel."""

    prefix = "dmcopy-mirror-"
    mapper: IoctlMapper

    def __init__(self, folder: Path, ledger: Path) -> None:
        super().__init__(folder)
        self.mapper = IoctlMapper(Ledger(ledger))
        # A write that is held has a worker wait for it, and none must wait for a free one.
        self.reactor = Reactor(functools.partial(ThreadsBackend, workers=MOST_HELD))
        self.open()
        self._numbers = {
            "{}:{}".format(*self.mapper.info(self.prefix + disk).number or ()): disk
            for disk in DISKS
        }

    def close(self) -> None:
        """Remove everything."""
        super().close()
        self.mapper.close()
        self.reactor.close()

    def load(self, text: str, *, readonly: bool = False) -> None:
        """Load another table for the mirror, and let its worker run, which the constructor wakes.

        With nosync it finds all regions in sync, and raises an event, which is lost as long as no
        device has the table (dm_table_event). Mostly: a resume may be quicker than the worker.
        """
        super().load(text, readonly=readonly)
        self.step()

    def is_quiet(self) -> bool:
        """Whether nothing happens under the mirror for a moment.

        Without faults it is soon done with what it does by itself. With them one recovery after
        the other fails, which nothing else shows: the count of regions in sync stays.
        """
        if not self._faulty:
            return True
        before = self._counters()
        end = time.monotonic() + MOMENT_SECONDS
        while time.monotonic() < end:
            self.step()
        return before == self._counters()

    def _counters(self) -> list[str]:
        """Return the kernel's statistics of the disks, which change with each request."""
        return [Path(f"/sys/dev/block/{number}/stat").read_text() for number in self._numbers]

    def _open(self) -> Device:
        return open_anyway(self.mapper.path(self.prefix + "m"))

    def _forget(self) -> None:
        self._device.close()

    def _names(self) -> dict[str, str]:
        return self._numbers


def fill(sides: Sequence[Side], seed: int, *, alike: bool, log: bytes) -> None:
    """Give the disks a content: the legs the same or each its own, and the log."""
    for disk in LEGS:
        piece = random.Random(seed if alike else f"{seed}{disk}").randbytes(1 << 16)
        for side in sides:
            side.poke(disk, piece * (SECTORS >> 7))
    for side in sides:
        side.poke("l", log.ljust(LOG_SECTORS << 9, b"\0"))


def differing_legs(one: Side, other: Side) -> list[str]:
    """Return the legs that the sides have different content on, and the first such sector."""
    found = []
    for disk in LEGS:
        ours, theirs = one.peek(disk), other.peek(disk)
        if ours != theirs:
            sector = next(
                n for n in range(SECTORS) if ours[n << 9 :][:512] != theirs[n << 9 :][:512]
            )
            found.append(f"leg {disk} from sector {sector} on")
    return found


def _ended(request: Io) -> None:
    request.context = True


def _outcome(request: Io) -> Any:
    if request.op == Op.DISCARD and request.error == errno.EOPNOTSUPP:
        return "done"  # as BLKDISCARD says (blkdev_issue_discard in block/blk-lib.c)
    if request.error:
        return os.strerror(request.error)
    if request.op == Op.READ:
        assert request.memory is not None
        return hashlib.sha256(request.memory.read(request.extents)).hexdigest()[:16]
    return "done"


def sectors(disk: str) -> int:
    """Return the size of a disk."""
    return LOG_SECTORS if disk == "l" else SECTORS
