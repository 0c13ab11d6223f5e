"""Files, or devices that `open_disk` makes of them, with faults in front of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dmcopy.block import BlockDevice
from dmcopy.io import Device, Op, Reactor, probe
from dmcopy.testing.faults import FaultyBackend


class RealDisks:
    """Real disks through a real back end; `stack` closes all of it."""

    def __init__(
        self,
        backend: str,
        folder: Path,
        stack: ExitStack,
        open_disk: Callable[[Path, int], Path] = lambda path, _: path,
    ) -> None:
        assert not probe()[backend], probe()[backend]
        self._folder = folder
        self._stack = stack
        self._open_disk = open_disk
        self.reactor = stack.enter_context(Reactor(backend))
        self._faults = FaultyBackend.install(self.reactor)

    def disk(self, name: str, content: bytes, block: int) -> Device:
        """See `HistoryDisks`."""
        path = self._folder / name
        path.write_bytes(content)
        device = BlockDevice.open(self._open_disk(path, block), write=True)
        return self._stack.enter_context(device)

    def content(self, disk: Any) -> bytes:
        """See `HistoryDisks`."""
        return bytes(disk.pread(0, disk.sectors))

    def fail(self, disk: Device, op: Op, sector: int, count: int, times: int | None) -> None:
        """See `HistoryDisks`."""
        self._faults.fail(disk, op, sector, count, times=times)
