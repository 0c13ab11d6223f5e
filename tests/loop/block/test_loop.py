"""Loop devices come and go with their `with` block, also many at a time."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dmcopy.block import BlockDevice, backing, sysfs, tools
from dmcopy.block import loop as loop_module
from dmcopy.block.loop import LoopDevice, attach, detach, loop_device
from dmcopy.errors import BusyError, DeadlineError, DmcopyError, UsageError
from dmcopy.ledger import Ledger
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.reap import Reaper
from tests.waiting import Program

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


def test_who_keeps_it_attached_is_named(loops: Any) -> None:
    (probe,) = loops(8)
    device = loop_module.attach(probe.backing)
    with BlockDevice.open(device.path), pytest.raises(BusyError, match=f"process {os.getpid()}"):
        loop_module.detach(device, 0.05)
    loop_module.detach(device)


VICTIM = """
import sys, time
from dmcopy.block.loop import LoopDevice, attach, detach, loop_device
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
        assert (entry.kind, entry.name, entry.uuid) == ("loop", device.path, device.mark)
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
    with Program(words, stdout=subprocess.PIPE, text=True) as victim:
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


def renamed(file: Path, folder: Path) -> None:
    file.rename(folder / "another")


def deleted(file: Path, folder: Path) -> None:
    del folder
    file.unlink()


def replaced(file: Path, folder: Path) -> None:
    """Its name is another file's, and it has another name."""
    (folder / "link").hardlink_to(file)
    file.unlink()
    file.write_bytes(bytes(8192))


@pytest.mark.parametrize("happens", [renamed, deleted, replaced])
@pytest.mark.parametrize("name", ["file", "blank ", "a (deleted)"])
def test_it_is_given_back_whatever_has_become_of_its_file(
    loops: Any, name: str, happens: Callable[[Path, Path], None]
) -> None:
    file = loops.folder / name
    ledger = Ledger(loops.folder / "ledger")
    file.write_bytes(bytes(4096))
    with loop_device(file, ledger=ledger) as device:
        happens(file, loops.folder)
    assert backing.mark(device.name) != device.mark
    assert ledger.entries() == []


@pytest.mark.parametrize("happens", [renamed, deleted, replaced])
def test_it_is_reaped_whatever_has_become_of_its_file(
    loops: Any, happens: Callable[[Path, Path], None]
) -> None:
    file = loops.folder / "file"
    ledger = Ledger(loops.folder / "ledger")
    file.write_bytes(bytes(4096))
    device = loop_module.attach(file, ledger=ledger)
    happens(file, loops.folder)
    result = Reaper(KernelMapper(), ledger, wanted=lambda _: True).run()
    assert [entry.name for entry in result.removed] == [device.path]
    assert backing.mark(device.name) != device.mark


def test_the_next_one_of_its_node_is_left_alone(loops: Any) -> None:
    """Even one that is made of the same file."""
    (other,) = loops(8)
    ledger = Ledger(loops.folder / "ledger")
    gone = replace(other, mark="disk 0", ledger=ledger, entry=ledger.add("loop", other.path))
    ledger.identify(gone.entry, gone.mark)
    result = Reaper(KernelMapper(), ledger, wanted=lambda _: True).run()
    assert [entry.name for entry in result.vanished] == [other.path]
    loop_module.detach(gone)
    assert backing.mark(other.name) == other.mark


def test_one_that_is_to_stay_is_known_by_its_file(loops: Any) -> None:
    """That name may be another file's by now: then it is left."""
    ledger = Ledger(loops.folder / "ledger")
    (stays,) = loops(8)
    file = Path(stays.backing)
    ledger.add("loop", stays.path, uuid=str(file), keep=True)
    reaper = Reaper(KernelMapper(), ledger, wanted=lambda _: True)
    file.rename(loops.folder / "another")
    file.write_bytes(bytes(4096))
    assert [entry.name for entry in reaper.run().vanished] == [stays.path]
    assert backing.mark(stays.name) == stays.mark


def test_one_that_was_about_to_be_made_is_looked_for_by_its_file(loops: Any) -> None:
    """Under any name: whether it is ours is not known, so that a person is asked."""
    ledger = Ledger(loops.folder / "ledger")
    (made,) = loops(8)
    file, link = Path(made.backing), loops.folder / "link"
    link.hardlink_to(file)
    file.unlink()
    ledger.add("loop", "", uuid=str(link))
    result = Reaper(KernelMapper(), ledger, wanted=lambda _: True).run()
    (why,) = result.left.values()
    assert f"{link} is attached to {made.path}, perhaps by a process that was killed" in why


def test_what_an_earlier_user_said_of_flushes_does_not_count(tmp_path: Path) -> None:
    """Many are attached, and the one that was detached is among them: its number is free."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    file = tmp_path / "disk"
    file.write_bytes(bytes(1 << 20))
    first = attach(file, ledger=ledger)
    attribute = Path(f"/sys/block/{first.name}/queue/write_cache")
    with contextlib.ExitStack() as exits:
        exits.callback(lambda: attribute.write_text("write back"))
        attribute.write_text("write through")
        detach(first)
        names: list[str] = []
        while first.name not in names and len(names) < 16:
            loop = attach(file, ledger=ledger)
            exits.callback(detach, loop)
            names.append(loop.name)
            assert Path(f"/sys/block/{loop.name}/queue/write_cache").read_text() == "write back\n"


def test_what_cannot_be_asked_is_not_detached(loops: Any) -> None:
    """Without a descriptor the kernel's answer is not that there is nothing."""
    (probe,) = loops(8)
    ledger = Ledger(loops.folder / "ledger")
    device = attach(probe.backing, ledger=ledger)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        with pytest.raises(DmcopyError, match="too many files are open"):
            detach(device, 0.1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert backing.mark(device.name) == device.mark
    assert [entry.id for entry in ledger.entries()] == [device.entry]
    detach(device)
    assert backing.mark(device.name) != device.mark
    assert ledger.entries() == []


def test_another_one_of_its_node_is_left_alone(loops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is detached, and another process's attached there, between a look and the open."""
    (probe,) = loops(8)
    device = attach(probe.backing)
    opens = os.open
    others: list[LoopDevice] = []

    def swapped(path: Any, *args: Any, **options: Any) -> int:
        if path == device.path and not others:
            monkeypatch.undo()
            subprocess.run(["losetup", "--detach", path], check=True)
            # Until it is free: udev may have it open, and another test may be quicker than we are.
            deadline = time.monotonic() + 10
            words = ["losetup", path, probe.backing]
            while (done := subprocess.run(words, check=False, capture_output=True)).returncode:
                assert time.monotonic() < deadline, done.stderr
            others.append(replace(device, mark=backing.mark(device.name)))
        return opens(path, *args, **options)

    monkeypatch.setattr(os, "open", swapped)
    detach(device)
    (other,) = others
    assert other.mark
    assert backing.mark(device.name) == other.mark
    detach(other)


@pytest.mark.parametrize("ends", [KeyboardInterrupt(), DeadlineError("losetup")])
def test_one_that_may_be_there_stays_in_the_ledger(
    loops: Any, monkeypatch: pytest.MonkeyPatch, ends: BaseException
) -> None:
    """losetup has attached it, and what waits for losetup is ended before it has the answer."""
    (probe,) = loops(8)
    ledger = Ledger(loops.folder / "ledger")
    run = tools.run
    nodes: list[str] = []

    def ended(argv: list[str], **options: Any) -> None:
        nodes.append(run(argv, **options).stdout.strip())
        raise ends

    monkeypatch.setattr(tools, "run", ended)
    with pytest.raises(type(ends)):
        attach(probe.backing, ledger=ledger)
    monkeypatch.undo()
    (entry,) = ledger.entries()
    assert (entry.kind, entry.name, entry.uuid) == ("loop", "", probe.backing)
    detach(LoopDevice(nodes[0], probe.backing))
    result = Reaper(KernelMapper(), ledger, wanted=lambda _: True).run()
    assert probe.path in result.left[probe.backing]  # the other one over this file
