"""Scripts that call dmsetup, on a machine without device-mapper, with the shim first on PATH."""

from __future__ import annotations

import os
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


@pytest.fixture
def shim(monkeypatch: pytest.MonkeyPatch, loops: LoopFactory) -> Iterator[Shim]:
    """The shim; the loop devices of a test are asked for first, and go last."""
    del loops
    if reason := file_mounts.why_not():
        pytest.skip(reason)
    if has_driver():
        pytest.skip("this kernel has device-mapper")
    with tempfile.TemporaryDirectory(prefix="dmcopy-", dir="/dev/shm") as name:
        found = Shim(Path(name))
        monkeypatch.setenv("DMCOPY_RUNTIME_DIR", name)
        monkeypatch.setenv("PATH", f"{found.bin}:{os.environ['PATH']}")
        assert main(["dm", "shim", str(found.bin)]) == 0
        try:
            yield found
        finally:
            left = subprocess.run(
                ["dmsetup", "remove_all", "--force"], capture_output=True, text=True, check=False
            )
        _wait_for_the_end(left.stdout + left.stderr)
        ours = identity(os.getpid())  # such as the loop devices of the test
        assert [one for one in Ledger().entries() if one.owner != ours] == []


def _wait_for_the_end(left: str) -> None:
    deadline = time.monotonic() + SECONDS
    while any(alive(one.uuid) for one in Ledger().entries() if one.kind == "server"):
        assert time.monotonic() < deadline, f"the device server does not end: {left}"
        time.sleep(0.01)
