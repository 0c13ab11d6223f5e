"""Scripts that call dmsetup, on a machine without device-mapper, with the shim first on PATH."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.block import file_mounts
from dmcopy.cli.main import main
from dmcopy.ledger import Ledger, alive, identity
from dmcopy.mapper.control import has_driver
from tests.loop.conftest import LoopFactory

SECONDS = 240.0
# A /dev/mapper of the script's own: no other test's names are in it, and its nodes go with it.
_PRELUDE = """
mount -t tmpfs none /dev/mapper
mkdir -p "$DMCOPY_RUNTIME_DIR/mnt"
mnt=$DMCOPY_RUNTIME_DIR/mnt
"""


class Shim:
    """Runs scripts that know of dmsetup only, with a device server of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"

    def run(self, script: str, *words: str, code: int = 0, stdin: str = "") -> str:
        """Run a script with these words as $1, $2, …; return what it prints, on both streams."""
        done = subprocess.run(
            [*("unshare", "--mount", "--propagation", "private", "bash", "-euc"),
             _PRELUDE + script, "script", *words],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=SECONDS,
        )  # fmt: skip
        assert done.returncode == code, done.stdout
        return done.stdout


@pytest.fixture(autouse=True)
def runtime_folder() -> Iterator[Path]:
    """Where the ledger is, also that of the test's loop devices: it comes first and goes last."""
    with tempfile.TemporaryDirectory(prefix="dmcopy-", dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture
def shim(
    monkeypatch: pytest.MonkeyPatch, loops: LoopFactory, runtime_folder: Path
) -> Iterator[Shim]:
    """The shim; the loop devices of a test are asked for first, and go last."""
    del loops
    if reason := file_mounts.why_not():
        pytest.skip(reason)
    if has_driver():
        pytest.skip("this kernel has device-mapper")
    found = Shim(runtime_folder)
    monkeypatch.setenv("DMCOPY_RUNTIME_DIR", str(runtime_folder))
    monkeypatch.setenv("DMCOPY_MAPPER_DIR", "/dev/mapper")
    monkeypatch.setenv("PATH", f"{found.bin}:{os.environ['PATH']}")
    assert main(["dm", "shim", str(found.bin)]) == 0
    try:
        yield found
    finally:
        _end_the_server()
    ours = identity(os.getpid())  # such as the loop devices of the test
    assert [one for one in Ledger().entries() if one.owner != ours] == []


def _end_the_server() -> None:
    """Wait until the server has ended, as it does without devices; tell it to if a test left some.

    What a script left mounted is mounted where the server is, and cannot be seen from here.
    """
    listed = subprocess.run(["dmsetup", "ls"], capture_output=True, text=True, check=False)
    deadline = time.monotonic() + SECONDS
    while servers := [
        one for one in Ledger().entries() if one.kind == "server" and alive(one.uuid)
    ]:
        assert time.monotonic() < deadline, "the device server does not end"
        if "No devices" not in listed.stdout:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(servers[0].uuid.split()[0]), signal.SIGTERM)
        time.sleep(0.01)
