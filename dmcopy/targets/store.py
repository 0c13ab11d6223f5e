"""What a snapshot asks of its exception store, and the store that is kept in memory only.

struct dm_exception_store_type in drivers/md/dm-exception-store.h, and dm-snap-transient.c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device
from dmcopy.ondisk.exception_store import MAX_CHUNK_SIZE
from dmcopy.ondisk.exceptions import ExceptionTable
from dmcopy.targets.base import TargetError
from dmcopy.units import SECTOR_SIZE


class Usage(NamedTuple):
    """What the status line says, in sectors."""

    allocated: int
    total: int
    metadata: int


class Prepared(Protocol):
    """An exception as its store gets it: chunk `old` of the origin is in chunk `new` of the COW.

    `failed`: its data was lost on the way.
    """

    old: int
    new: int
    failed: bool


Committed = Callable[[Sequence[Any], bool], object]
"""Hears of exceptions, in the order of their `commit`, that are durable, or that are lost."""


def ignore(batch: Sequence[Any], good: bool) -> None:
    """Be the `on_committed` of a store that no snapshot uses yet."""


class ExceptionStore(Protocol):
    """Where a snapshot's changed chunks are. `chunk_size` is in sectors.

    `on_committed(batch, good)` is called for what came to `commit`, in as few batches as can be.
    """

    letters: str
    chunk_size: int
    can_merge: bool
    on_committed: Committed

    def load(self, exceptions: ExceptionTable) -> bool:
        """Read what is there; False: the store says that it is invalid. Waits for I/O."""

    def attach(self, reactor: Reactor, cow: Device) -> None:
        """Be another table's, with its handle on the same COW device."""

    def prepare(self) -> int | None:
        """Reserve a chunk of the COW; None when it is full. Every one must come to `commit`."""

    def commit(self, prepared: Prepared) -> None:
        """Record an exception whose data is in place, or was lost; then tell `on_committed`."""

    def invalidate(self, notify: Callable[[], object]) -> None:
        """Say on the device that the store is no longer valid; `notify` when that was tried."""

    def usage(self) -> Usage:
        """Return how much of the COW is used."""

    def close(self) -> None:
        """Release memory; nothing is being written."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being written."""


class TransientStore:
    """Exceptions in memory: lost with the device. `chunk_size` must be given."""

    letters = "N"
    can_merge = False
    is_idle = True

    def __init__(self, cow: Device, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self.on_committed: Committed = ignore
        self._cow = cow
        self._next = 0  # in sectors, as the kernel counts here

    def load(self, exceptions: ExceptionTable) -> bool:
        """There is nothing to load."""
        del exceptions
        return True

    def attach(self, reactor: Reactor, cow: Device) -> None:
        del reactor
        self._cow = cow

    def prepare(self) -> int | None:
        """Reserve the next chunk; None when the COW is full."""
        if self._cow.sectors < self._next + self.chunk_size:
            return None
        self._next += self.chunk_size
        return self._next // self.chunk_size - 1

    def commit(self, prepared: Prepared) -> None:
        """There is nothing to record."""
        self.on_committed((prepared,), not prepared.failed)

    def invalidate(self, notify: Callable[[], object]) -> None:
        """Call `notify`: nothing is on the device."""
        notify()

    def close(self) -> None:
        """There is nothing to release."""

    def usage(self) -> Usage:
        """Return how much of the COW is used; no metadata."""
        return Usage(self._next, self._cow.sectors, 0)


def check_chunk_size(chunk_size: int, *devices: Device) -> None:
    """Raise TargetError for a chunk size that the kernel refuses.

    dm_exception_store_set_chunk_size in drivers/md/dm-exception-store.c.
    """
    if chunk_size & (chunk_size - 1):
        raise TargetError("Chunk size is not a power of 2")
    for device in devices:
        if chunk_size * SECTOR_SIZE % device.logical_block_size:
            raise TargetError("Chunk size is not a multiple of device blocksize")
    if chunk_size > MAX_CHUNK_SIZE:
        raise TargetError("Chunk size is too high")
