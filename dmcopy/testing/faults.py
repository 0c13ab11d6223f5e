"""Faults on purpose: a back end that fails the requests which it is told to fail.

with Reactor("threads") as reactor:
    faulty = FaultyBackend.install(reactor)
    faulty.fail(disk, Op.READ, sector=4096, count=8)
    faulty.fail(other, Op.WRITE, error=errno.ENOSPC, times=1)

A request that fails never reaches the device, so what a failed write would have changed is as it
was. Works over any back end, on real files and devices; a `SimulatedDisk` has faults of its own.
"""

from __future__ import annotations

import errno
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Self

from dmcopy.io.backend import IoBackend
from dmcopy.io.parts import Fan, FlushFirst
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device
from dmcopy.io.request import CopyIo, Io, Op, Request
from dmcopy.io.simulated import Fault


@dataclass
class DeviceFault:
    """A `Fault` on one device. `hits` counts the requests that failed by it."""

    device: Hashable
    fault: Fault
    hits: int = 0

    def touches(self, request: Io) -> bool:
        """Return whether the request fails, and count it."""
        if request.device.identity != self.device or not self.fault.hits(request):
            return False
        self.hits += 1
        return True


class FaultyBackend:
    """An `IoBackend` around another, `inner`."""

    def __init__(self, inner: IoBackend) -> None:
        self.inner = inner
        self.name = inner.name
        self.time = inner.time
        self.fileno = inner.fileno
        self.pin, self.unpin = inner.pin, inner.unpin
        self.faults: list[DeviceFault] = []
        self._finished: list[Request] = []

    @classmethod
    def install(cls, reactor: Reactor) -> Self:
        """Put one around the back end of `reactor`, before anything else uses that reactor."""
        faulty = cls(reactor.backend)
        reactor.backend = faulty
        reactor.submit = faulty.submit
        return faulty

    def fail(
        self,
        device: Device,
        op: Op,
        sector: int = 0,
        count: int | None = None,
        *,
        error: int = errno.EIO,
        times: int | None = None,
    ) -> DeviceFault:
        """Fail the next `times` requests (None: all) of kind `op` that touch the range.

        `count` None is up to the end of the device.
        """
        length = device.sectors - sector if count is None else count
        fault = DeviceFault(device.identity, Fault(op, sector, length, error, times))
        self.faults.append(fault)
        return fault

    def submit(self, request: Request) -> None:
        """Fail the request, or hand it on; a copy is taken apart into its read and its writes."""
        if isinstance(request, CopyIo):
            if self._may_touch(request):
                Fan(request, self.submit).start()
            else:
                self.inner.submit(request)
            return
        if request.preflush:
            FlushFirst(request, self.submit).start()
            return
        for fault in self.faults:
            if fault.touches(request):
                request.error = fault.fault.error
                self._finished.append(request)
                return
        self.inner.submit(request)

    def poll(self, timeout: float | None) -> list[Request]:
        finished, self._finished = self._finished, []
        return finished + self.inner.poll(0 if finished else timeout)

    def close(self) -> None:
        """Close the back end inside."""
        self.inner.close()

    def _may_touch(self, request: CopyIo) -> bool:
        devices = {region.device.identity for region in (request.source, *request.dests)}
        return any(fault.device in devices for fault in self.faults)
