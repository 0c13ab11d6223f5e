"""Loop devices come and go with their `with` block, also many at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dmcopy.block import BlockDevice, sysfs
from dmcopy.block import loop as loop_module
from dmcopy.block.loop import loop_device
from dmcopy.errors import BusyError, UsageError
from dmcopy.ledger import Ledger
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.reap import Reaper

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


VICTIM = """
import sys, time
from dmcopy.block.loop import loop_device
from dmcopy.ledger import Ledger

with loop_device(sys.argv[1], ledger=Ledger(sys.argv[2])) as device:
    print(device.path, flush=True)
    time.sleep(600)
"""


def test_it_is_in_the_ledger_for_as_long_as_it_is_there(loops: Any) -> None:
    (probe,) = loops(8)
    ledger = Ledger(loops.folder / "ledger")
    with loop_device(probe.backing, ledger=ledger) as device:
        (entry,) = ledger.entries()
        assert (entry.kind, entry.name, entry.uuid) == ("loop", device.path, device.backing)
    assert ledger.entries() == []
    with (
        pytest.raises(Exception, match="Invalid argument"),
        loop_device(probe.backing, ledger=ledger, sector_size=7),
    ):
        pass
    assert ledger.entries() == []


def test_one_whose_process_was_killed_is_reaped(loops: Any) -> None:
    (probe,) = loops(8)
    ledger = Ledger(loops.folder / "ledger")
    words = [sys.executable, "-c", VICTIM, probe.backing, str(ledger.path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        path = victim.stdout.readline().strip()
        assert sysfs.backing_file(os.path.basename(path)) == probe.backing
        assert Reaper(KernelMapper(), ledger).run().removed == []  # its owner lives
        victim.send_signal(signal.SIGKILL)
        victim.wait(10)
    result = Reaper(KernelMapper(), ledger).run()
    assert [(entry.kind, entry.name) for entry in result.removed] == [("loop", path)]
    assert sysfs.backing_file(os.path.basename(path)) != probe.backing
    assert ledger.entries() == []
