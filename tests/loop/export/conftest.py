"""A userspace engine whose devices are served, and commands that are run while it serves."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from dmcopy.block import file_mounts
from dmcopy.block.loop import loop_device
from dmcopy.export.aside import aside
from dmcopy.export.base import Place
from dmcopy.export.fuse.served import FuseFile
from dmcopy.export.loop import LoopDevices
from dmcopy.ledger import Ledger
from dmcopy.mapper.userspace import UserMapper
from dmcopy.table import Table
from tests.loop.export.here import Here, of_its_own

SECONDS = 120.0
_T = TypeVar("_T")


class Serving:
    """`mapper` makes devices, `file` serves them; `folder` is in memory, `ledger` in it."""

    def __init__(
        self, folder: Path, mapper: UserMapper, below: ExitStack, stack: ExitStack
    ) -> None:
        self.folder = folder
        self.below = below
        self.stack = stack
        self.ledger = Ledger(folder / "ledger")
        self.mapper = mapper

    def image(self, name: str, size: int) -> Path:
        """Make a sparse file of `size` bytes."""
        path = self.folder / name
        with open(path, "wb") as file:
            file.truncate(size)
        return path

    def make(self, name: str, table: str, *, readonly: bool = False) -> None:
        self.mapper.create(name, Table.parse(table), readonly=readonly)

    def file(self, name: str) -> FuseFile:
        """Serve a device as a file, until the end of the test if not before."""
        path = str(self.folder / f"{name}.served")
        made = FuseFile(self.mapper.reactor, self.mapper.open(name), path, ledger=self.ledger)
        self.stack.callback(made.close, force=True)
        return made

    def loop(self, name: str) -> str:
        """Serve a device as a loop device, until the end of the test."""
        path = str(self.folder / f"{name}.loop")
        made = LoopDevices(self.mapper.reactor, Place(at=path), ledger=self.ledger)
        self.stack.enter_context(made)
        return made.add(name, self.mapper.open(name))

    def snapshot(self, origin: str, image: Path, cow: Path, sectors: int) -> str:
        """Make a snapshot of a device over an image, and serve it as a loop device."""
        self.mapper.load(origin, Table.parse(f"0 {sectors} snapshot-origin {image}"))
        self.make("then", f"0 {sectors} snapshot {image} {cow} P 8")
        self.mapper.suspend(origin)
        self.mapper.resume(origin)
        return self.loop("then")

    def mount(self, device: str, *options: str) -> Path:
        """Mount a device on a folder, until the end of the test, or `umount`."""
        point = self.folder / f"{os.path.basename(device)}.mounted"
        point.mkdir(exist_ok=True)
        self.run("mount", *options, device, point)
        self.stack.callback(self.shell, '! mountpoint -q "$1" || umount "$1"', point)
        return point

    def umount(self, point: Path) -> None:
        """Unmount, and wait until the device is free.

        A mount namespace that another test makes meanwhile has the file system mounted, too.
        """
        device = self.run("findmnt", "--noheadings", "--output", "SOURCE", point).strip()
        self.run("umount", point)
        self.meanwhile(lambda: _wait_until_free(device))

    def meanwhile(self, call: Callable[[], _T]) -> _T:
        """Make a call that waits for what is served here."""
        return aside(self.mapper.reactor, call, "what the test does", timeout=SECONDS)

    @contextlib.contextmanager
    def opened(self, path: str) -> Iterator[int]:
        """Open what is served here. To close it, too, waits for its server."""
        fd = self.meanwhile(lambda: os.open(path, os.O_RDWR))
        try:
            yield fd
        finally:
            with contextlib.suppress(OSError):  # its server may have ended
                self.meanwhile(lambda: os.close(fd))

    def run(self, *words: str | os.PathLike[str], code: int = 0) -> str:
        """Run a program to its end; it must end with `code`."""
        done = self.meanwhile(lambda: _run(words))
        assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def begin(self, *words: str | os.PathLike[str]) -> Callable[[], int]:
        """Start a program; return what waits for its end and returns its exit code."""
        process = subprocess.Popen(
            list(map(str, words)), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return lambda: self.meanwhile(lambda: process.wait(SECONDS))

    def until(self, done: Callable[[], object], waiting_for: str) -> None:
        self.mapper.reactor.run_until(done, SECONDS, waiting_for)

    def loop_below(self, size: int, *, sector_size: int) -> str:
        """Make a loop device of a new file, to be under a table."""
        image = self.image("below", size)
        return self.below.enter_context(
            loop_device(image, sector_size=sector_size, ledger=self.ledger)
        ).path

    def shell(self, script: str, *words: str | os.PathLike[str], code: int = 0) -> str:
        """Run a script of the shell, which has the words as $1, $2 …"""
        return self.run("bash", "-euc", script, "bash", *words, code=code)


def _wait_until_free(device: str) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            assert time.monotonic() < deadline, f"{device} is still mounted elsewhere"
            time.sleep(0.02)
        else:
            return


def _run(words: Sequence[str | os.PathLike[str]]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, words)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=SECONDS,
    )


class Server:
    """A process that serves devices; see `tests.loop.export.server`. `paths`: where they are."""

    def __init__(self, kind: str, folder: Path, spec: str, *, before: Sequence[str] = ()) -> None:
        words = [*before, sys.executable, "-m", "tests.loop.export.server"]
        self.process = subprocess.Popen(
            [*words, kind, str(folder), spec],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout
        try:
            self.paths = self._read(spec.count(";") + 1)
        except BaseException:
            self.kill()
            raise

    def _read(self, lines: int) -> list[str]:
        """Read the lines, which may come together: what is in a buffer, select(2) does not see."""
        pipe = self._out.fileno()
        said = b""
        while said.count(b"\n") < lines:
            ready, _, _ = select.select([pipe], [], [], SECONDS)
            assert ready, f"the server says nothing after {said!r}"
            more = os.read(pipe, 4096)
            assert more, f"the server ended after {said!r}"
            said += more
        return said.decode().split()

    def end(self) -> int:
        """Let it end by itself."""
        self._in.close()
        return self._wait()

    def kill(self) -> None:
        self.process.kill()
        self._wait()

    def _wait(self) -> int:
        code = self.process.wait(SECONDS)
        self._in.close()
        self._out.close()
        return code


@pytest.fixture
def serving() -> Iterator[Serving]:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if reason := file_mounts.why_not():
        pytest.skip(reason)
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="dmcopy-", dir=shm) as folder:
        with ExitStack() as below, UserMapper() as mapper, ExitStack() as stack:
            made = Serving(Path(folder), mapper, below, stack)
            yield made
        assert made.ledger.entries() == []


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    """A device server of the test's own, which commands use."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if reason := file_mounts.why_not():
        pytest.skip(reason)
    monkeypatch.setenv("DMCOPY_RUNTIME_DIR", "")  # it is set again, and put back at the end
    monkeypatch.setenv("DMCOPY_ENGINE", "user")
    with of_its_own() as found:
        yield found
