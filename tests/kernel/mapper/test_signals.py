"""Commands that wait on real device-mapper end soon after a signal, whatever stderr is."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dmcopy.cli import main, signals
from dmcopy.errors import ExitCode
from dmcopy.ledger import Ledger
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.table import Table

from .conftest import Disks

pytestmark = pytest.mark.kernel(either=True, cost=5)

DEADLINE = 60.0


def full() -> int:
    """Return the writing end of a pipe that is full."""
    read, write = os.pipe()
    os.set_inheritable(read, True)  # a reader has it open, and does not read
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, bytes(65536))
    os.set_blocking(write, True)
    return write


def closed() -> int:
    return -1


def null() -> int:
    return os.open(os.devnull, os.O_WRONLY)


STREAMS = [full, closed, null]


class Command:
    """`dmcopy` with its own streams, in a fork: a new Python takes seconds to start in a guest."""

    def __init__(self, words: list[str], stderr: Callable[[], int]) -> None:
        self.words = words
        reading, writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            code = 99
            try:
                for number in signals.ENDING:
                    signal.signal(number, signal.SIG_DFL)
                os.write(writing, b".")
                code = self._become(stderr())
            finally:
                os._exit(code)
        os.close(writing)
        # Until then it has this process's handlers: what it caught by those would be forgotten.
        assert os.read(reading, 1)
        os.close(reading)

    def _become(self, stderr: int) -> int:
        os.dup2(null(), 1)
        if stderr < 0:
            os.close(2)
        else:
            os.dup2(stderr, 2)
        sys.stdout = sys.__stdout__ = io.TextIOWrapper(io.FileIO(1, "w", closefd=False))  # type: ignore[misc]
        messages = None if stderr < 0 else io.TextIOWrapper(io.FileIO(2, "w", closefd=False))
        sys.stderr = sys.__stderr__ = messages  # type: ignore[misc]
        sys.argv = ["dmcopy", *self.words]
        return main.main()

    def _status(self) -> dict[str, str]:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return dict(line.split(":\t", 1) for line in lines)

    def handles_signals(self) -> bool:
        caught = int(self._status()["SigCgt"], 16)
        return all(caught >> (number - 1) & 1 for number in signals.ENDING)

    def waits(self) -> bool:
        """Whether it, with its children, has done nothing for a while: it is at what it is for."""
        return self.handles_signals() and len({self._used() for _ in range(5)}) == 1

    def _used(self) -> tuple[str, ...]:
        time.sleep(0.05)
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (fields[0], *fields[11:15])

    def code(self) -> int:
        ended: list[int] = []

        def look() -> bool:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            ended.append(status)
            return pid == self.pid

        try:
            until(f"the end of {self.words}", look)
        except BaseException:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise
        return os.waitstatus_to_exitcode(ended[-1])


def until(what: str, seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not seen():
        assert time.monotonic() < deadline, f"waited {DEADLINE:g} s for {what}"
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def own_books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmcopy.ledger.default_path", lambda: tmp_path / "own.jsonl")
    monkeypatch.setattr("dmcopy.workflows.journal.default_folder", lambda: tmp_path / "workflows")


@pytest.fixture(scope="module")
def devices(raw_disks: Disks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelMapper]:
    """A device, a snapshot, and a mirror whose second leg takes nothing: it is suspended."""
    disks, folder = raw_disks, tmp_path_factory.mktemp("devices")
    disks.wipe()
    mapper = KernelMapper(ledger=Ledger(folder / "ledger.jsonl"))
    tables = {
        "zero": "zero",
        "base": f"linear {disks.a} 0",
        "cow": f"linear {disks.b} 0",
        "snap": f"snapshot {mapper.path('base')} {mapper.path('cow')} P 8",
        "origin": f"snapshot-origin {mapper.path('base')}",
        "slow": f"linear {disks.b} 4096",
        "home": f"mirror core 2 1024 sync 2 {disks.c} 0 {mapper.path('slow')} 0 1 handle_errors",
    }
    for name, words in tables.items():
        mapper.create(name, Table.parse(f"0 2048 {words}"))
        if name == "slow":
            mapper.suspend(name)
    yield mapper
    mapper.resume("slow")
    for name in reversed(tables):
        mapper.remove(name)


WAITING = [
    "dm events --follow",
    "dm wait zero",
    "dm with work --table '0 8 zero' -- sleep 1000",
    "snapshot watch snap --interval 600",
    "mirror wait home",
]
CHILDREN = (b"dmsetup\0wait\0", b"sleep\0001000\0")


def children() -> list[bytes]:
    """Return the command lines of what such commands start and wait for."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            found.append(path.read_bytes())
    return [line for line in found if any(words in line for words in CHILDREN)]


@pytest.mark.parametrize("line", WAITING)
def test_it_ends_when_it_is_told_to(devices: KernelMapper, line: str) -> None:
    """Immediately, and when it has come to what it waits for; by each signal, with each stderr."""
    before = {info.name for info in devices.ls()}
    turn = WAITING.index(line)  # each command has another part of the combinations
    for at, number in enumerate(signals.ENDING):
        early = (turn + at) % 2 == 0
        command = Command(shlex.split(line), STREAMS[(turn + at) % 3])
        until(f"{line} to begin", command.handles_signals if early else command.waits)
        os.kill(command.pid, number)
        assert command.code() == ExitCode.INTERRUPTED, (number, early)
        assert {info.name for info in devices.ls()} == before, (number, early)
        until(f"what {line} has started to end", lambda: not children())
