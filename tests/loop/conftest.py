"""Loop devices on RAM-backed files, gone again after each test whatever happens in it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from dmcopy.block.loop import LoopDevice, loop_device
from dmcopy.units import SECTOR_SIZE


class LoopFactory:
    """`loops(size_sectors, n=1, **kw)`: n loop devices of that size, as a list.

    The keywords are those of `dmcopy.block.loop.loop_device`; the sparse backing files are in
    `folder`.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self._made = 0

    def __call__(self, size_sectors: int, n: int = 1, **options: Any) -> list[LoopDevice]:
        return [self._make(size_sectors, options) for _ in range(n)]

    def _make(self, size_sectors: int, options: dict[str, Any]) -> LoopDevice:
        file = self.folder / f"disk{self._made}.img"
        self._made += 1
        with open(file, "wb") as handle:
            handle.truncate(size_sectors * SECTOR_SIZE)
        return self._stack.enter_context(loop_device(file, **options))


@pytest.fixture
def loops() -> Iterator[LoopFactory]:
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    if not os.path.exists("/dev/loop-control"):
        pytest.skip("this kernel has no loop devices (modprobe loop)")
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    # The stack is left first: a backing file is removed only when its device is detached.
    with tempfile.TemporaryDirectory(prefix="dmcopy-", dir=shm) as folder, ExitStack() as stack:
        yield LoopFactory(Path(folder), stack)
