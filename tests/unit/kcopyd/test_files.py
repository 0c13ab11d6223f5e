"""The histories of the simulation, on files and through the real back ends."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.simulated.kcopyd.history import play
from tests.simulated.kcopyd.real import RealDisks


@pytest.mark.parametrize("backend", ["uring", "threads"])
def test_histories_on_files(backend: str, tmp_path: Path) -> None:
    for seed in range(60):
        with contextlib.ExitStack() as stack:
            play(seed, RealDisks(backend, tmp_path, stack))
