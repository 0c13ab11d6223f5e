"""Both engines, kept for all tests of the folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .sides import KernelSide, UserSide

Pair = tuple[UserSide, KernelSide]


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Our engine and the kernel."""
    folder = Path("/dev/shm") / f"dmcopy-mirror-{os.getpid()}"
    for name in ("user", "kernel"):
        (folder / name).mkdir(parents=True)
    ledger = tmp_path_factory.mktemp("mirror") / "ledger.jsonl"
    sides = UserSide(folder / "user"), KernelSide(folder / "kernel", ledger)
    yield sides
    for side in sides:
        side.close()
    for name in ("user", "kernel", "."):
        (folder / name).rmdir()
