"""Loop devices come and go with their `with` block, also many at a time."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dmcopy.block import BlockDevice, sysfs
from dmcopy.block import loop as loop_module
from dmcopy.block.loop import loop_device
from dmcopy.errors import BusyError, UsageError

pytestmark = pytest.mark.loop


def test_it_is_there_for_the_with_block_only(loops: Any) -> None:
    (probe,) = loops(8)
    file = probe.backing + ".other"
    Path(file).write_bytes(b"q" * 4096)
    with loop_device(file, read_only=True, offset=2, size=3) as loop:
        assert sysfs.backing_file(loop.name) == file
        with BlockDevice.open(loop.path) as device:
            assert device.sectors == 3
            assert device.pread(0, 3) == b"q" * 1536
    assert sysfs.backing_file(loop.name) != file


def test_a_missing_file_is_named() -> None:
    with (
        pytest.raises(UsageError, match="/no/such/file: there is no such file"),
        loop_device("/no/such/file"),
    ):
        pass


def test_many_at_a_time_get_devices_of_their_own(loops: Any) -> None:
    together = threading.Barrier(6)

    def use(number: int) -> str:
        file = loops.folder / f"many{number}"
        file.write_bytes(bytes([number]) * 4096)
        together.wait(30)
        with loop_device(file) as loop, BlockDevice.open(loop.path) as device:
            assert device.pread(0, 8) == bytes([number]) * 4096
            together.wait(30)
            return loop.path

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(use, range(6)))) == 6


def test_who_keeps_it_attached_is_named(loops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "DETACH_SECONDS", 0.05)
    (probe,) = loops(8)
    device = loop_module.attach(probe.backing)
    with BlockDevice.open(device.path), pytest.raises(BusyError, match=f"process {os.getpid()}"):
        loop_module.detach(device)
    loop_module.detach(device)
