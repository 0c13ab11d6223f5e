"""An agent as a process of this machine, at the other end of a socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.vm.channel import Channel

_AGENT = "import sys; from dmcopy.vm.agent import Agent; Agent(int(sys.argv[1])).serve()"


class LocalAgent:
    """A channel and the process behind it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _AGENT, str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )
        self.channel = Channel(ours)
        self.channel.wait_hello(time.monotonic() + 30)

    def close(self) -> None:
        self.channel.close()
        self.process.wait(30)


@pytest.fixture
def agent() -> Iterator[LocalAgent]:
    local = LocalAgent()
    yield local
    local.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DMCOPY_ACCEL", raising=False)
    return tmp_path / "dmcopy"


def gone(pid: int, timeout: float = 20) -> bool:
    """Whether a process ends in time; a zombie has ended."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False
