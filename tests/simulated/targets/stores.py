"""What a fresh engine finds on a COW, loaded once for all COWs of which it reads the same.

A load is a function of what it reads: each read is of a place that those before it have led to. So
where a COW holds at all these places what another one held, an engine would find the same on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dmcopy.io import Reactor
from dmcopy.io.request import Io, Op, Request
from dmcopy.io.simulated import Outcome, SimulatedDisk
from dmcopy.mapper.userspace import UserMapper
from dmcopy.table import Table
from dmcopy.targets.snapshot import Snapshot
from tests.simulated.instant import InstantBackend

Places = tuple[tuple[int, int], ...]
"""Bytes that were read, in order: start, end."""


class Store(NamedTuple):
    """A store as an engine has it: `exceptions` as old chunk, chunk of the COW."""

    chunk_size: int
    exceptions: Sequence[tuple[int, int]]


class Stores:
    """`loads` counts those that an engine did."""

    def __init__(self) -> None:
        self.loads = 0
        self._backend = _NotingBackend()
        self._reactor = Reactor(self._backend, stacked=True)
        self._known: dict[tuple[Table, Places], dict[bytes, Store]] = {}

    def close(self) -> None:
        """Close the engine's reactor."""
        self._reactor.close()

    def load(self, table: Table, cow: Outcome, content: bytearray, origin: SimulatedDisk) -> Store:
        """Return what an engine finds with a table of one snapshot; `content` is the COW's."""
        for (of, places), known in self._known.items():
            if of is table and (store := known.get(_held(content, places))) is not None:
                return store
        store, places = self._loaded(table, cow.disk(), origin)
        self._known.setdefault((table, places), {})[_held(content, places)] = store
        return store

    def _loaded(
        self, table: Table, cow: SimulatedDisk, origin: SimulatedDisk
    ) -> tuple[Store, Places]:
        self.loads += 1
        reads: list[tuple[object, int, int]] = []
        self._backend.reads = reads
        disks = {cow.path: cow, origin.path: origin}
        with UserMapper(self._reactor, open_device=lambda path, _write: disks[path]) as mapper:
            name = f"snapshot on {cow.path}"
            mapper.create(name, table)
            active = mapper.open(name).active
            assert active is not None
            (target,) = active.targets
            assert isinstance(target, Snapshot)
            store = Store(target.chunk_size, list(target.exceptions.items()))
        assert all(device is cow for device, _, _ in reads), "a load depends on more than its COW"
        return store, tuple((sector << 9, sector + count << 9) for _, sector, count in reads)


class _NotingBackend(InstantBackend):
    """Notes what is read, in order: device, sector, count."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[tuple[object, int, int]] = []

    def submit(self, request: Request) -> None:
        if isinstance(request, Io) and request.op == Op.READ:
            self.reads.append((request.device, request.sector, request.count))
        super().submit(request)


def _held(content: bytes | bytearray, places: Places) -> bytes:
    return b"".join([content[start:end] for start, end in places])
