"""I/O that is waited for: for code that sets something up and has nothing else to do meanwhile.

Only outside of callbacks, on the reactor's own thread. Everything here raises DeviceError when the
device fails, and DeadlineError when it does not answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from dmcopy.errors import DeviceError, UsageError
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device, IoRegion
from dmcopy.io.request import Extent, Io, Memory, Op
from dmcopy.units import PAGE_SIZE, SECTOR_SHIFT

TIMEOUT_SECONDS = 60.0


def perform(reactor: Reactor, request: Io, *, timeout: float = TIMEOUT_SECONDS) -> None:
    """Submit `request` and wait for it."""
    done: list[None] = []  # and not of requests: one that refers to itself keeps its memory
    request.notify = lambda _: done.append(None)
    request.region.check(write=request.op not in (Op.READ, Op.FLUSH))
    reactor.submit(request)
    reactor.run_until(lambda: done, timeout, f"{request.op.name} of {request.region}")
    if request.error:
        action = f"{request.op.name.lower().replace('_', ' ')} {_place(request)}"
        raise DeviceError(request.device.path, action, request.error)


def read(
    reactor: Reactor, device: Device, sector: int, count: int, *, timeout: float = TIMEOUT_SECONDS
) -> bytes:
    """Return the content of `count` sectors from `sector` on."""
    memory, extents = _memory(count << SECTOR_SHIFT)
    request = Io(Op.READ, IoRegion(device, sector, count), memory, extents)
    perform(reactor, request, timeout=timeout)
    return memory.read(extents)


def write(
    reactor: Reactor,
    device: Device,
    sector: int,
    data: bytes | memoryview,
    *,
    fua: bool = False,
    timeout: float = TIMEOUT_SECONDS,
) -> None:
    """Write `data`, whole sectors of it, from `sector` on; durable on return with `fua`."""
    count, rest = divmod(len(data), 1 << SECTOR_SHIFT)
    if rest:
        raise UsageError(f"{device.path}: {len(data)} bytes are not a whole number of sectors")
    memory, extents = _memory(len(data))
    memory.fill(extents, data)
    request = Io(Op.WRITE, IoRegion(device, sector, count), memory, extents, fua=fua)
    perform(reactor, request, timeout=timeout)


def flush(reactor: Reactor, device: Device, *, timeout: float = TIMEOUT_SECONDS) -> None:
    """Make everything written so far durable."""
    perform(reactor, Io(Op.FLUSH, IoRegion(device, 0, 0)), timeout=timeout)


def zero(
    reactor: Reactor, device: Device, sector: int, count: int, *, timeout: float = TIMEOUT_SECONDS
) -> None:
    """Make a range read as zeroes."""
    perform(reactor, Io(Op.WRITE_ZEROES, IoRegion(device, sector, count)), timeout=timeout)


def discard(
    reactor: Reactor, device: Device, sector: int, count: int, *, timeout: float = TIMEOUT_SECONDS
) -> None:
    """Tell the device that a range is no longer needed."""
    perform(reactor, Io(Op.DISCARD, IoRegion(device, sector, count)), timeout=timeout)


def _memory(size_bytes: int) -> tuple[Memory, Sequence[Extent]]:
    """Return memory that goes with the last reference to it.

    It is never closed: a request that is given up here may be held below, and be done later.
    """
    return Memory(max(1, -(-size_bytes // PAGE_SIZE))), [(0, size_bytes)]


def _place(request: Io) -> str:
    return "it" if request.op == Op.FLUSH else f"{request.count} sectors at {request.sector}"
