"""A userspace engine whose devices are served, and commands that are run while it serves."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from dmcopy.block import file_mounts
from dmcopy.export.aside import aside
from dmcopy.export.fuse.served import FuseFile
from dmcopy.ledger import Ledger
from dmcopy.mapper.userspace import UserMapper
from dmcopy.table import Table

SECONDS = 120.0
_T = TypeVar("_T")


class Serving:
    """`mapper` makes devices, `file` serves them; `folder` is in memory, `ledger` in it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.ledger = Ledger(folder / "ledger")
        self.mapper = UserMapper()

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

    def shell(self, script: str, *words: str | os.PathLike[str], code: int = 0) -> str:
        """Run a script of the shell, which has the words as $1, $2 …"""
        return self.run("bash", "-euc", script, "bash", *words, code=code)


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


@pytest.fixture
def serving() -> Iterator[Serving]:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if reason := file_mounts.why_not():
        pytest.skip(reason)
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="dmcopy-", dir=shm) as folder, ExitStack() as stack:
        made = Serving(Path(folder), stack)
        stack.callback(made.mapper.close)
        yield made
        stack.close()
        assert made.ledger.entries() == []
