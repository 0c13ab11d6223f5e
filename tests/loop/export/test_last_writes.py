"""The last writes of a process that was killed: io_uring's outlive it, and hold their device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dmcopy.block import BlockDevice, opening
from dmcopy.errors import BusyError, DeadlineError
from dmcopy.io import probe
from tests.loop.export.conftest import Serving
from tests.loop.export.here import MIB, SECONDS, Here
from tests.waiting import Program, until

pytestmark = pytest.mark.loop

WRITES = """
import sys
from dmcopy.block import BlockDevice
from dmcopy.io import Io, IoRegion, Memory, Op, Reactor

device = BlockDevice.open(sys.argv[1], write=True)
memory = Memory(1)
memory.view[:] = b"x" * len(memory.view)
with Reactor("uring") as reactor:
    print("open", flush=True)
    sys.stdin.readline()
    reactor.submit(Io(Op.WRITE, IoRegion(device, 8, 8), memory, [(0, 4096)], print))
    reactor.run_until(lambda: False, 100, "the end")
"""


def under_way(path: str) -> bool:
    """Whether a disk has I/O under way."""
    name = os.path.basename(os.path.realpath(path))
    return any(map(int, Path(f"/sys/block/{name}/inflight").read_text().split()))


def is_free(path: str) -> bool:
    try:
        BlockDevice.open(path, write=True).close()
    except BusyError:
        return False
    return True


def test_a_device_is_busy_until_they_have_ended(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who took it over before would be written over by them, or read what they change."""
    if probe()["uring"]:
        pytest.skip(probe()["uring"])
    below = here.image("below", 4 * MIB)
    here.dm("create", "slow", "--table", f"0 8192 linear {below} 0")
    path = here.mapper.path("slow")
    words = [sys.executable, "-c", WRITES, path]
    with Program(words, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        here.dm("suspend", "--nolockfs", "slow")
        try:
            process.stdin.write("\n")
            process.stdin.flush()
            until(lambda: under_way(path), "the write")
            process.kill()
            process.wait(SECONDS)
            monkeypatch.setattr(opening, "_LAST_IO_SECONDS", 0.5)
            with pytest.raises(BusyError):
                BlockDevice.open(path, write=True, direct=False)  # it reads nothing, which waited
        finally:
            here.dm("resume", "slow")
    until(lambda: is_free(path), "its end")
    with BlockDevice.open(path, write=True) as device:
        assert device.pread(8, 8) == b"x" * 4096
    here.dm("remove", "slow")


def test_the_next_device_server_waits_for_them(here: Here, serving: Serving) -> None:
    """Its disk is `slow`, of this process: what the killed one wrote to it has not ended."""
    serving.make("slow", f"0 8192 linear {serving.image('below', 4 * MIB)} 0")
    slow = serving.loop("slow")
    do = serving.meanwhile
    do(lambda: here.dm("create", "data", "--table", f"0 8192 linear {slow} 0"))
    path = here.mapper.path("data")
    serving.mapper.suspend("slow")
    dd = ["dd", "if=/dev/zero", f"of={path}", "bs=4k", "count=1", "oflag=direct", "status=none"]
    with Program(dd, stderr=subprocess.DEVNULL) as writer:
        try:
            serving.until(lambda: under_way(slow), "the write")
            server = here.server()
            os.kill(int(server.split()[0]), signal.SIGKILL)
            do(lambda: here.gone(server))
            words = [sys.executable, "-m", "dmcopy", "serve", "--resume"]
            with Program(words, stdout=-1, stderr=-1, text=True) as resumed:
                with pytest.raises(DeadlineError):
                    serving.mapper.reactor.run_until(
                        lambda: resumed.poll() is not None, 1, "its end, while a write is under way"
                    )
                serving.mapper.resume("slow")
                said, error = do(resumed.communicate)
                assert (resumed.returncode, said, error) == (0, f"{path}\n", "")
        finally:
            serving.mapper.resume("slow")
            do(writer.wait)
    do(lambda: here.dm("remove", "data"))
