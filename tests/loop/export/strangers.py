"""Programs of other people, and what they are given to judge."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.export.serving import Serving

SECTORS = 32 << 11
PACKAGES = {
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "nbdinfo": "libnbd-bin",
    "nbdcopy": "libnbd-bin",
    "nbdkit": "nbdkit",
    "nbdsh": "python3-libnbd",
    "fio": "fio",
}


def run(program: str, *words: object, code: int = 0) -> str:
    """Run a program; return what it said. Skips where there is no such program."""
    if shutil.which(program) is None:
        pytest.skip(f"no {program} (apt-get install {PACKAGES[program]})")
    # nbdsh runs by the first python3, and its module is for the distribution's.
    env = {**os.environ, "PATH": f"/usr/bin:{os.environ['PATH']}"}
    argv = [program, *map(str, words)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, env=env)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


class Pair:
    """A snapshot and its origin, and what the origin held when the snapshot was made."""

    def __init__(self, folder: Path, serving: Serving, before: bytes) -> None:
        self.folder = folder
        self.then, self.live = serving.found
        self.before = before


@contextlib.contextmanager
def served_pair(tmp_path: Path) -> Iterator[Pair]:
    """Serve a disk of random bytes and its snapshot."""
    before = os.urandom(1 << 20) * (SECTORS >> 11)
    disk, cow = tmp_path / "disk", tmp_path / "cow"
    disk.write_bytes(before)
    with open(cow, "wb") as file:
        file.truncate(SECTORS * 512 * 5 // 4)
    spec = f"then,,,,0 {SECTORS} snapshot {disk} {cow} P 8;"
    spec += f"live,,,,0 {SECTORS} snapshot-origin {disk}"
    with Serving("--concise", spec, "--socket", tmp_path / "socket", lines=2) as serving:
        yield Pair(tmp_path, serving, before)


def content(uri: str, folder: Path) -> bytes:
    """The whole of an export, by four connections."""
    copy = folder / "copy"
    run("nbdcopy", "--connections", 4, uri, copy)
    return copy.read_bytes()
