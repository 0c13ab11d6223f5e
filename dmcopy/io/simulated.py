"""Disks in memory on a virtual clock: one seed replays one history, crash points included.

A `SimulatedDisk` has a volatile write cache, as real ones have: what was written but not flushed
may be lost or kept at a power cut, whole or torn by sector. A `SimulatedBackend` decides by its
seed when each request completes, so requests overtake each other as they do on hardware.
"""

from __future__ import annotations

import errno
import heapq
import random
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from dmcopy.errors import DeadlineError
from dmcopy.io.parts import Fan, FlushFirst
from dmcopy.io.request import CopyIo, Io, Memory, Op, Request
from dmcopy.units import SECTOR_SHIFT, SECTOR_SIZE


@dataclass
class Fault:
    """`times` requests (None: all) of kind `op` that touch the range fail with `error`."""

    op: Op
    sector: int
    count: int
    error: int = errno.EIO
    times: int | None = None

    def hits(self, request: Io) -> bool:
        """Return whether the request fails, and count it."""
        if self.times == 0 or request.op != self.op:
            return False
        if request.op != Op.FLUSH:  # a flush has no range
            if request.sector >= self.sector + self.count:
                return False
            if request.sector + request.count <= self.sector:
                return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class _CachedWrite:
    sector: int
    data: bytes
    durable: bool  # written with FUA: never lost, but still older writes may not come over it


class SimulatedDisk:
    """A disk of `sectors` in memory, a `dmcopy.io.Device`. New disks hold zeroes.

    `content` is what reads see. `faults` are consulted for every request. A disk that has vanished
    fails everything with ENODEV. One that is `write_through` keeps what it has written.
    """

    def __init__(
        self, sectors: int, name: str = "disk", *, logical_block_size: int = SECTOR_SIZE
    ) -> None:
        self.path = name
        self.sectors = sectors
        self.logical_block_size = logical_block_size
        self.read_only = False
        self.write_through = False
        self.content = bytearray(sectors << SECTOR_SHIFT)
        self.faults: list[Fault] = []
        self.vanished = False
        self._durable = bytearray(self.content)
        self._cache: list[_CachedWrite] = []
        self._flushed = 0

    def __repr__(self) -> str:
        return f"<SimulatedDisk {self.path} of {self.sectors} sectors>"

    @property
    def identity(self) -> Hashable:
        """The object is the device."""
        return id(self)

    def fileno(self) -> int:
        """There is none: only a `SimulatedBackend` can do I/O here."""
        raise OSError(errno.ENOTBLK, "a simulated disk has no descriptor")

    def load(self, data: bytes | bytearray) -> None:
        """Set the whole content, durable."""
        self.content[:] = data
        self._durable[:] = data
        self._flushed += len(self._cache)
        self._cache.clear()

    def fail(
        self, op: Op, sector: int, count: int, *, error: int = errno.EIO, times: int | None = None
    ) -> Fault:
        """Add a fault and return it."""
        fault = Fault(op, sector, count, error, times)
        self.faults.append(fault)
        return fault

    def read(self, sector: int, count: int) -> bytes:
        """Return what is there, as an observer outside of the simulation."""
        return bytes(self.content[sector << SECTOR_SHIFT : (sector + count) << SECTOR_SHIFT])

    def write(self, sector: int, data: bytes, *, durable: bool = False) -> None:
        """Write through the volatile cache; `durable` as FUA does."""
        start = sector << SECTOR_SHIFT
        self.content[start : start + len(data)] = data
        self._cache.append(_CachedWrite(sector, data, durable))
        if self.write_through:
            self.flush()

    def flush(self, upto: int | None = None) -> None:
        """Make the writes before number `upto` durable (None: all); `writes` gives the number."""
        count = len(self._cache) if upto is None else max(0, upto - self._flushed)
        for write in self._cache[:count]:
            self._settle(write.sector, write.data)
        del self._cache[:count]
        self._flushed += count

    @property
    def writes(self) -> int:
        """How many writes there have been."""
        return self._flushed + len(self._cache)

    def discard(self, sector: int, count: int) -> None:
        """Discarded sectors read as zeroes here."""
        self.zero_out(sector, count)

    def zero_out(self, sector: int, count: int) -> None:
        """Write zeroes through the cache."""
        self.write(sector, bytes(count << SECTOR_SHIFT))

    def twin(self) -> SimulatedDisk:
        """Return a disk in the same state, volatile cache included, that continues by itself."""
        twin = SimulatedDisk(0, self.path, logical_block_size=self.logical_block_size)
        twin.sectors = self.sectors
        twin.write_through = self.write_through
        twin.content = self.content[:]
        twin._durable = self._durable[:]
        twin._cache = self._cache[:]
        twin._flushed = self._flushed
        return twin

    def crash(self, rng: random.Random) -> None:
        """Cut the power: of the cached writes, any may be lost, kept, or torn by sector."""
        fate = rng.choice(("lose", "keep", "writes", "sectors"))
        for write in self._cache:
            if write.durable or fate == "keep" or (fate == "writes" and rng.random() < 0.5):
                self._settle(write.sector, write.data)
            elif fate == "sectors":
                for sector, data in _torn(write.sector, write.data, rng):
                    self._settle(sector, data)
        self._flushed += len(self._cache)
        self._cache.clear()
        self.content[:] = self._durable

    def outcome(self, flying: Iterable[tuple[int, Io]], rng: random.Random) -> Outcome:
        """Choose what a power cut now would leave, as `crash` does; nothing is changed.

        `flying`: writes to this disk that are in flight, in order, each with a number of its own.
        """
        fate = rng.choice(("lose", "keep", "writes", "sectors"))
        chance = rng.random
        kept: list[tuple[int, bytes]] = []
        state: list[Hashable] = [self._flushed]
        for number, write in enumerate(self._cache, self._flushed):
            if write.durable or fate == "keep" or (fate == "writes" and chance() < 0.5):
                kept.append((write.sector, write.data))
                state.append(number)
            elif fate == "sectors":
                kept += (torn := _torn(write.sector, write.data, rng))
                state.append((number, *(sector for sector, _ in torn)))
        for order, request in flying:
            if fate == "keep" or (fate == "writes" and chance() < 0.5):
                kept.append((request.sector, _data(request)))
                state.append(-order)
            elif fate == "sectors":
                kept += (torn := _torn(request.sector, _data(request), rng))
                state.append((-order, *(sector for sector, _ in torn)))
        return Outcome(self, tuple(state), kept)

    def after(self, kept: Iterable[tuple[int, bytes]]) -> bytearray:
        """Return what is durable, with `kept` over it."""
        content = self._durable[:]
        for sector, data in kept:
            start = sector << SECTOR_SHIFT
            content[start : start + len(data)] = data
        return content

    @classmethod
    def holding(cls, content: bytearray, name: str, block_size: int = SECTOR_SIZE) -> SimulatedDisk:
        """Return a disk with this content, which becomes the disk's own."""
        disk = cls(0, name, logical_block_size=block_size)
        disk.sectors = len(content) >> SECTOR_SHIFT
        disk.content = content
        disk._durable = content[:]
        return disk

    def _settle(self, sector: int, data: bytes) -> None:
        start = sector << SECTOR_SHIFT
        self._durable[start : start + len(data)] = data


class SimulatedBackend:
    """`IoBackend` on a virtual clock. Everything that it decides comes from `seed`."""

    name = "simulated"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._rng = random.Random(seed)
        self._now = 0.0
        self._order = 0
        self._events: list[tuple[float, int, Io, int]] = []
        self.steps = 0

    def time(self) -> float:
        """The virtual clock, in seconds."""
        return self._now

    @property
    def busy(self) -> bool:
        """Whether a request is in flight."""
        return bool(self._events)

    def fileno(self) -> int:
        """A simulation cannot be nested in another event loop."""
        raise OSError(errno.ENOTSUP, "a simulated back end has no descriptor")

    def submit(self, request: Request) -> None:
        """Decide when the request completes."""
        if isinstance(request, CopyIo):
            Fan(request, self.submit).start()
            return
        if request.preflush:
            FlushFirst(request, self.submit).start()
            return
        delay = self._rng.choice((10e-6, 100e-6, 1e-3)) * (1 + self._rng.random())
        self._order += 1
        covered = getattr(request.device, "writes", 0)
        heapq.heappush(self._events, (self._now + delay, self._order, request, covered))

    def pin(self, memory: Memory) -> None:
        """See `Reactor.pin`; nothing is gained by it here."""

    def unpin(self, memory: Memory) -> None:
        """See `Reactor.unpin`."""

    def poll(self, timeout: float | None) -> list[Request]:
        """Let the next request complete, or the clock advance by `timeout`."""
        if not self._events:
            if timeout is None:
                raise DeadlineError(
                    "what is waited for never happens: the simulation has no I/O and no timer left"
                )
            self._now += timeout
            return []
        when = self._events[0][0]
        if timeout is not None and when > self._now + timeout:
            self._now += timeout
            return []
        self._now, _, request, covered = heapq.heappop(self._events)
        self.steps += 1
        _perform(request, covered)
        return [request]

    def close(self) -> None:
        """Forget what is in flight."""
        self._events.clear()

    def power_cut(self, disks: Iterable[SimulatedDisk]) -> None:
        """Cut the power of all disks; requests in flight are done, torn or lost."""
        for request in self._writes_in_flight():
            _write(request, request.device)  # type: ignore[arg-type]
        self._events.clear()
        for disk in disks:
            disk.crash(self._rng)

    def outcomes(self, disks: Sequence[SimulatedDisk], rng: random.Random) -> list[Outcome]:
        """Choose what a power cut now would leave of disks; the simulation itself continues.

        Two moments whose outcomes have the same `state` left the same contents.
        """
        flying: dict[int, list[tuple[int, Io]]] = {id(disk): [] for disk in disks}
        for _, order, request, _ in self._events:
            if request.op in _WRITES and id(request.device) in flying:
                flying[id(request.device)].append((order, request))
        return [disk.outcome(flying[id(disk)], rng) for disk in disks]

    def _writes_in_flight(self) -> list[Io]:
        return [event[2] for event in self._events if event[2].op in _WRITES]


_WRITES: Final = frozenset((Op.WRITE, Op.WRITE_ZEROES, Op.DISCARD))


class Outcome(NamedTuple):
    """What a power cut leaves of a disk. `kept`: sectors and data, over what is durable."""

    of: SimulatedDisk
    state: tuple[Hashable, ...]
    kept: list[tuple[int, bytes]]

    def content(self) -> bytearray:
        """Return what it holds: before anything else becomes durable on the disk that it is of."""
        return self.of.after(self.kept)

    def disk(self) -> SimulatedDisk:
        return SimulatedDisk.holding(self.content(), self.of.path, self.of.logical_block_size)


def _perform(request: Io, covered: int) -> None:
    """Do the request now; `covered`: how many writes the disk had seen when it was submitted."""
    disk = request.device
    assert isinstance(disk, SimulatedDisk)
    if disk.vanished:
        request.error = errno.ENODEV
        return
    for fault in disk.faults:
        if fault.hits(request):
            request.error = fault.error
            return
    if request.op == Op.READ:
        assert request.memory is not None
        request.memory.fill(request.extents, disk.read(request.sector, request.count))
    elif request.op == Op.FLUSH:
        disk.flush(covered)
    else:
        _write(request, disk, durable=request.fua)


def _write(request: Io, disk: SimulatedDisk, *, durable: bool = False) -> None:
    disk.write(request.sector, _data(request), durable=durable and request.op == Op.WRITE)


def _data(request: Io) -> bytes:
    if request.op == Op.WRITE:
        assert request.memory is not None
        return request.memory.read(request.extents)
    return bytes(request.count << SECTOR_SHIFT)


def _torn(sector: int, data: bytes, rng: random.Random) -> list[tuple[int, bytes]]:
    """Return those sectors of a write that stay."""
    left = []
    for offset in range(0, len(data), SECTOR_SIZE):
        if rng.random() < 0.5:
            left.append((sector + (offset >> SECTOR_SHIFT), data[offset : offset + SECTOR_SIZE]))
    return left
