"""A disk in trouble, over any other device: what devices do that no error tells of.

    disk = TroubledDisk(below, reactor, seed=7)
    disk.corrupt(sector=4096, count=8)          # reads there have a bit changed, and no error
    disk.short(Op.READ, times=1)                # the next read ends in its middle
    disk.latency = lognormal(0.002, 1.5)        # seconds, by chance
    disk.drop_flushes = True                    # a flush ends well and does nothing
    disk.forget_fua = True

On a reactor for stacked devices, simulated or not. Errors by range have `dmcopy.testing.faults`.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence
from functools import partial

from dmcopy.io.layer import Layer
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device, IoRegion
from dmcopy.io.request import FLUSH, READ, WRITE, Extent, Io, Memory, Op
from dmcopy.io.request import cut as cut_extents
from dmcopy.io.simulated import Fault
from dmcopy.units import PAGE_SIZE, SECTOR_SHIFT

Latency = Callable[[random.Random, Io], float]
"""Returns how many seconds a request takes longer."""


def constant(seconds: float) -> Latency:
    """Every request takes as long."""
    return lambda _rng, _io: seconds


def uniform(least: float, most: float) -> Latency:
    """Any time between two is as likely."""
    return lambda rng, _io: rng.uniform(least, most)


def lognormal(median: float, sigma: float = 1.0) -> Latency:
    """Most take about the median, and few very much longer, as on a busy disk."""
    return lambda rng, _io: median * rng.lognormvariate(0, sigma)


def stalls(chance: float, seconds: float, otherwise: float = 0.0) -> Latency:
    """One request of `1 / chance` takes `seconds`: a disk that collects its garbage."""
    return lambda rng, _io: seconds if rng.random() < chance else otherwise


class TroubledDisk(Layer):
    """`below`, with the troubles that were asked for. One seed and one history have one outcome.

    Attributes:
        latency: how much longer each request takes; None: no longer.
        drop_flushes: flushes end well, and nothing was flushed.
        forget_fua: what is written with FUA is as any other write.
        corrupted, shortened: how many requests were.
    """

    def __init__(self, below: Device, reactor: Reactor, *, seed: int = 0) -> None:
        super().__init__(below, reactor)
        self.latency: Latency | None = None
        self.drop_flushes = False
        self.forget_fua = False
        self.corrupted = self.shortened = 0
        self._rng = random.Random(seed)
        self._corrupt: list[Fault] = []
        self._short: list[Fault] = []

    def corrupt(
        self, sector: int = 0, count: int | None = None, *, op: Op = READ, times: int | None = None
    ) -> Fault:
        """Change a bit of what is read in a range, or with `op` WRITE of what is written there.

        `times`: so often; None: always. The fault that is returned ends with `fault.times = 0`.
        """
        fault = Fault(op, sector, self.sectors - sector if count is None else count, 0, times)
        self._corrupt.append(fault)
        return fault

    def short(
        self, op: Op, sector: int = 0, count: int | None = None, *, times: int | None = None
    ) -> Fault:
        """Let requests end with EIO when the first half of their blocks is done."""
        length = self.sectors - sector if count is None else count
        fault = Fault(op, sector, length, errno.EIO, times)
        self._short.append(fault)
        return fault

    def submit(self, request: Io) -> None:
        if self.latency is not None:
            seconds = self.latency(self._rng, request)
            self._reactor.call_later(max(seconds, 0.0), partial(self._begin, request))
        else:
            self._begin(request)

    def _begin(self, request: Io) -> None:
        if request.op == FLUSH and self.drop_flushes:
            self._reactor.call_soon(partial(request.notify, request))  # type: ignore[arg-type, misc]
            return
        count, error = request.count, 0
        if any(fault.hits(request) for fault in self._short):
            self.shortened += 1
            unit = self.logical_block_size >> SECTOR_SHIFT
            count, error = count // 2 // unit * unit, errno.EIO
        spoilt = request.op in (READ, WRITE) and any(fault.hits(request) for fault in self._corrupt)
        if not count and error:
            request.error = error
            self._reactor.call_soon(partial(request.notify, request))  # type: ignore[arg-type, misc]
            return
        memory = request.memory
        extents: Sequence[Extent] = (
            cut_extents(request.extents, 0, count << SECTOR_SHIFT) if memory else ()
        )
        if spoilt and memory and request.op == WRITE:  # a copy: the same memory may go elsewhere
            data = memory.read(extents)
            memory, extents = Memory(-(-len(data) // PAGE_SIZE)), [(0, len(data))]
            memory.fill(extents, data)
            self._spoil(memory, extents)

        def done(io: Io) -> None:
            if spoilt and memory and request.op == READ and not io.error:
                self._spoil(memory, extents)
            request.error = io.error or error
            request.notify(request)  # type: ignore[misc]

        region = IoRegion(self.below, request.sector, count)
        fua = request.fua and not self.forget_fua
        self._reactor.submit(Io(request.op, region, memory, extents, done, fua=fua))

    def _spoil(self, memory: Memory, extents: Sequence[Extent]) -> None:
        """Change a bit of what is in memory."""
        self.corrupted += 1
        view = self._rng.choice(memory.views(extents))
        view[self._rng.randrange(len(view))] ^= 1 << self._rng.randrange(8)
