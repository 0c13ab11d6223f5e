"""Both engines, each with its own disks: legs a to d and a log l, every one under a linear device.

What a test does, it does to both; `seen` returns everything that must then be the same.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmcopy.io.request import Io, Op
from dmcopy.ledger import Ledger
from dmcopy.mapper.userspace import UserMapper
from dmcopy.targets.mirror import Mirror
from dmcopy.targets.mirror_set import Module
from dmcopy.testing.compare import (
    Harness,
    RequestResult,
    View,
    first_byte,
    has_ended,
    kernel_reactor,
    result,
)
from dmcopy.testing.disks import Disks
from dmcopy.testing.mirrors import LEGS, SIZES, Heal, healthy
from dmcopy.testing.steps import Access
from tests.kernel.snapshot.ioctls import IoctlMapper

DONE_SECONDS = 120.0
HELD_SECONDS = 0.4
MOMENT_SECONDS = 0.02


@dataclass
class Look:
    """What can be seen of a mirror and its disks from outside."""

    view: View
    outcomes: list[str]
    log: bytes

    def differs(self, other: Look) -> list[str]:
        """Say in what two looks differ, ours first."""
        found = [
            f"{name}: ours {ours!r}, the kernel's {theirs!r}"
            for name, ours, theirs in zip(View._fields, self.view, other.view, strict=True)
            if ours != theirs
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


class MirrorSide(Harness):
    """An engine. Its mirror is called m, the devices under it a to d and l, as their disks."""

    def start_up(self) -> None:
        """Make the devices under the legs and the log."""
        self.faulty: set[str] = set()
        self._requests: list[Io] = []
        self._outcomes: list[str] = []
        for name in SIZES:
            self.create(name, healthy(name))

    def close(self) -> None:
        """Remove everything."""
        super().close()
        self.disks.close()

    # The disks.

    def poke(self, disk: str, data: bytes, sector: int = 0) -> None:
        """Write to a disk, below everything."""
        self.disks.poke(f"disk-{disk}", sector, data)

    def peek(self, disk: str) -> bytes:
        """Read a disk, below everything."""
        return self.disks.peek(f"disk-{disk}")

    def checksums(self) -> tuple[int, ...]:
        """Return a number for each leg's content."""
        return tuple(self.disks.checksum(f"disk-{leg}") for leg in LEGS)

    def swap(self, name: str, text: str, *, readonly: bool = False, flush: bool = True) -> None:
        """Put another table in place of the active one, and note which disks are not good."""
        super().swap(name, text, readonly=readonly, flush=flush)
        if name in SIZES:
            (self.faulty.discard if text == healthy(name) else self.faulty.add)(name)

    def heal(self) -> None:
        """Make all disks good again."""
        Heal(tuple(sorted(self.faulty))).do(self)

    # The mirror.

    def make(self, text: str, *, readonly: bool = False) -> None:
        """Make the mirror."""
        self._requests, self._outcomes = [], []
        self.create("m")
        self.load("m", text, readonly=readonly)
        self.resume("m")

    def drop(self) -> None:
        """Remove the mirror; what is held ends."""
        if not all(map(has_ended, self._requests)):
            self.suspend("m")
            self.resume("m")
            self.wait(lambda: all(map(has_ended, self._requests)), "what was held")
        self.remove("m")

    def suspend(self, name: str, *, flush: bool = True) -> None:
        """Suspend a device; what is held below would keep a file system's freeze waiting."""
        self.mapper.suspend(self.prefix + name, flush=flush, lockfs=False)

    def resume(self, name: str) -> None:
        """Resume a device."""
        self.mapper.resume(self.prefix + name, lockfs=False)

    def begin(self, access: Access) -> int:
        """Begin a request; return its number."""
        self._outcomes.append("held")
        self._requests.append(self.start(access))
        return len(self._requests) - 1

    def perform(self, *accesses: Access) -> list[RequestResult]:
        """Begin requests, and wait for those that are not held. What became of them is `seen`."""
        self.finish([self.begin(access) for access in accesses])
        return []

    def finish(self, numbers: Sequence[int]) -> None:
        """Wait for requests as long as it makes sense."""
        raise NotImplementedError

    def has_ended(self, number: int) -> bool:
        """Whether a request has."""
        return has_ended(self._requests[number])

    def is_held(self, access: Access) -> bool:
        """Whether a write to any of its sectors has not ended."""
        return any(
            request.op == Op.WRITE
            and not has_ended(request)
            and request.sector < access.sector + access.count
            and access.sector < request.sector + request.count
            for request in self._requests
        )

    def wait(self, done: Callable[[], bool], what: str) -> None:
        """Wait until `done()`; raises DeadlineError."""
        self.reactor.run_until(done, DONE_SECONDS, what)

    def seen(self) -> Look:
        """Return everything that can be seen."""
        for number, request in enumerate(self._requests):
            if self._outcomes[number] == "held" and has_ended(request):
                self._outcomes[number] = _outcome(request)
        return Look(self.look("m"), list(self._outcomes), self.peek("l"))


class UserSide(MirrorSide):
    """dmcopy's own engine."""

    mapper: UserMapper

    def __init__(self, disks: Disks, mapper: UserMapper) -> None:
        super().__init__("user", mapper, disks)
        self.unexpected: list[BaseException] = []  # what was raised inside of the engine
        self.reactor.on_exception = self.unexpected.append
        # With several regions at a time, more of them were begun when a default leg fails.
        self.mapper.module(Module).recovery = "kernel"
        self.start_up()

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

    def finish(self, numbers: Sequence[int]) -> None:
        """Wait: what has not ended when the engine is quiet is held."""
        del numbers
        self.settle()

    def settle(self) -> None:
        """Let everything happen that happens by itself."""
        device = self.mapper.open("m")
        mirror = self._mirror

        def quiet() -> bool:
            if mirror is None:
                return True
            work = mirror.work
            below = any(self.mapper.open(disk).in_flight for disk in SIZES)
            copying = work._client.statistics().jobs  # a recovery may wait for a held write
            held = bool(device.in_flight) == bool(work.held)
            soon = self.reactor.next_due() == 0
            return held and work._worker.idle and not below and not copying and not soon

        self.wait(quiet, "the engine to be quiet")
        assert not self.unexpected


class KernelSide(MirrorSide):
    """The kernel."""

    mapper: IoctlMapper

    def __init__(self, disks: Disks, ledger: Path) -> None:
        mapper = IoctlMapper(Ledger(ledger), kernel_reactor())
        super().__init__("kernel", mapper, disks, prefix="dmcopy-mirror-")
        self.start_up()
        self._numbers = [self.mapper.info(self.prefix + disk).devno for disk in SIZES]

    def close(self) -> None:
        """Remove everything."""
        super().close()
        self.mapper.close()
        self.reactor.close()

    def load(self, name: str, text: str, *, readonly: bool = False) -> None:
        """Load another table for the mirror, and let its worker run, which the constructor wakes.

        With nosync it finds all regions in sync, and raises an event, which is lost as long as no
        device has the table (dm_table_event). Mostly: a resume may be quicker than the worker.
        """
        super().load(name, text, readonly=readonly)
        self.step()

    def finish(self, numbers: Sequence[int]) -> None:
        """Give requests a moment to end.

        One that ends later, and is held by our engine, is found at the next comparison.
        """
        end = time.monotonic() + HELD_SECONDS
        while time.monotonic() < end and not all(map(self.has_ended, numbers)):
            self.step()

    def is_quiet(self) -> bool:
        """Whether nothing happens under the mirror for a moment.

        Without faults it is soon done with what it does by itself. With them one recovery after
        the other fails, which nothing else shows: the count of regions in sync stays.
        """
        if not self.faulty:
            return True
        before = self._counters()
        end = time.monotonic() + MOMENT_SECONDS
        while time.monotonic() < end:
            self.step()
        return before == self._counters()

    def _counters(self) -> list[str]:
        """Return the kernel's statistics of the disks, which change with each request."""
        return [Path(f"/sys/dev/block/{number}/stat").read_text() for number in self._numbers]


def differing_legs(one: MirrorSide, other: MirrorSide) -> list[str]:
    """Return the legs that the sides have different content on, and the first such sector."""
    found = []
    for disk in LEGS:
        if not one.disks.same(f"disk-{disk}", other.disks):  # nearly always they are
            place = first_byte(one.peek(disk), other.peek(disk))
            if place is not None:  # not even any more
                found.append(f"leg {disk} from sector {place >> 9} on")
    return found


def _outcome(request: Io) -> str:
    if request.op == Op.DISCARD and request.error == errno.EOPNOTSUPP:
        return "done"  # as BLKDISCARD says (blkdev_issue_discard in block/blk-lib.c)
    if request.error:
        return os.strerror(request.error)
    return str(result(request))
