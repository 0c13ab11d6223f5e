"""The histories of the simulation, on loop devices and through the real back ends."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from dmcopy.block.loop import loop_device
from tests.simulated.kcopyd.history import play
from tests.simulated.kcopyd.real import RealDisks

pytestmark = pytest.mark.loop


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if os.geteuid() != 0 or not os.path.exists("/dev/loop-control"):
        pytest.skip("needs root and loop devices")
    return tmp_path


@pytest.mark.parametrize("backend", ["uring", "threads"])
def test_histories_on_loop_devices(backend: str, folder: Path) -> None:
    for seed in range(20):
        with contextlib.ExitStack() as stack:

            def attach(path: Path, block: int, stack: contextlib.ExitStack = stack) -> Path:
                return Path(stack.enter_context(loop_device(path, sector_size=block)).path)

            play(seed, RealDisks(backend, folder, stack, attach))
