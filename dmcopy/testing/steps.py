"""The steps that a workload is made of, as plain values; they are done to a `Harness`.

A step of your own is any object with `do(harness)`. What it returns is compared, or the name of the
errno of the DeviceError that it raises. In steps a disk or device is called by its own name, and in
tables by `@name`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from dmcopy.io.request import Op
from dmcopy.testing.access import Access
from dmcopy.testing.harness import Harness, Step
from dmcopy.units import SECTOR_SIZE

__all__ = [
    "OPS",
    "Access",
    "AwaitMerge",
    "Burst",
    "Cycle",
    "Load",
    "Message",
    "Resume",
    "Step",
    "Suspend",
    "Swap",
    "Wipe",
    "bursts",
]

OPS: Final[Mapping[Op, int]] = MappingProxyType({Op.WRITE: 70, Op.READ: 15, Op.FLUSH: 5})
"""How often `bursts` does what."""


@dataclass(frozen=True)
class Burst:
    """Requests that are in flight together. In any order they end in the same content."""

    accesses: tuple[Access, ...]

    def do(self, harness: Harness) -> object:
        return harness.perform(*self.accesses)


@dataclass(frozen=True)
class Load:
    """Load a table beside the active one; a `readonly` one refuses those who open the device.

    A device that is not there yet is made.
    """

    device: str
    table: str
    readonly: bool = False

    def do(self, harness: Harness) -> None:
        harness.load(self.device, self.table, readonly=self.readonly)


@dataclass(frozen=True)
class Suspend:
    """Suspend a device; without `flush`, queued I/O stays queued."""

    device: str
    flush: bool = True

    def do(self, harness: Harness) -> None:
        harness.suspend(self.device, flush=self.flush)


@dataclass(frozen=True)
class Resume:
    """Resume a device, with the loaded table if there is one."""

    device: str

    def do(self, harness: Harness) -> None:
        harness.resume(self.device)


@dataclass(frozen=True)
class Cycle:
    """Suspend and resume a device."""

    device: str
    flush: bool = True

    def do(self, harness: Harness) -> None:
        harness.suspend(self.device, flush=self.flush)
        harness.resume(self.device)


@dataclass(frozen=True)
class Swap:
    """Put another table in place of the active one."""

    device: str
    table: str
    readonly: bool = False
    flush: bool = True

    def do(self, harness: Harness) -> None:
        harness.swap(self.device, self.table, readonly=self.readonly, flush=self.flush)


@dataclass(frozen=True)
class Message:
    """Send words to the target at `sector`; what is answered is compared."""

    device: str
    words: tuple[str, ...]
    sector: int = 0

    def do(self, harness: Harness) -> object:
        return harness.message(self.device, *self.words, sector=self.sector)


@dataclass(frozen=True)
class Wipe:
    """Zero the first sector of a disk, so that a new exception store begins there."""

    disk: str

    def do(self, harness: Harness) -> None:
        harness.disks.poke(self.disk, 0, bytes(SECTOR_SIZE))


@dataclass(frozen=True)
class AwaitMerge:
    """Wait until a merge has nothing more to do, well or not."""

    device: str

    def do(self, harness: Harness) -> None:
        def ended() -> bool:
            numbers = harness.words(self.device).replace("/", " ").split()
            return not numbers[0].isdecimal() or numbers[0] == numbers[2]

        harness.wait(ended, f"the merge of {self.device}")


def bursts(
    seed: int,
    device: str,
    sectors: int,
    *,
    length: int = 50,
    depth: int = 1,
    longest: int = 64,
    ops: Mapping[Op, int] = OPS,
) -> Iterator[Burst]:
    """Yield `length` bursts of at most `depth` requests, the same for the same arguments.

    The device has `sectors`, a request at most `longest`. `ops`: how often what is done, if its
    targets take it.
    """
    rng = random.Random(f"{seed} {device} {sectors}")
    for _ in range(length):
        found: list[Access] = []
        for _ in range(rng.randint(1, depth)):
            op = rng.choices(list(ops), list(ops.values()))[0]
            sector = rng.randrange(sectors)
            count = rng.randint(1, min(longest, sectors - sector))
            access = Access(op, device, sector, count, rng.getrandbits(32))
            if op == Op.FLUSH:
                access = Access(op, device)
            if not any(access.overlaps(other) for other in found):
                found.append(access)
        yield Burst(tuple(found))
