"""Both engines, kept for all tests of a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.udevd import without_udevd

from .sides import KernelSide, UserSide

Pair = tuple[UserSide, KernelSide]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Our engine and the kernel."""
    with without_udevd():
        yield from _sides(tmp_path_factory.mktemp("mirror") / "ledger.jsonl")


def _sides(ledger: Path) -> Iterator[Pair]:
    folder = Path("/dev/shm") / f"dmcopy-mirror-{os.getpid()}"
    for name in ("user", "kernel"):
        (folder / name).mkdir(parents=True)
    sides = UserSide(folder / "user"), KernelSide(folder / "kernel", ledger)
    yield sides
    for side in sides:
        side.close()
    for name in ("user", "kernel", "."):
        (folder / name).rmdir()
