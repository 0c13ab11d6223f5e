"""udevd, stopped while tests make thousands of devices without it.

The flags of `IoctlMapper` keep udev's rules off a device, not its events: each still wakes udevd,
which in an emulated guest falls behind by more than a minute, and then the next test that waits for
udev waits for all of them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_DAEMON: Final = "/lib/systemd/systemd-udevd"
_SECONDS: Final = 120


@contextlib.contextmanager
def without_udevd() -> Iterator[None]:
    """Stop udevd for the length of a `with` block: events meanwhile are lost.

    Where systemd would start it again immediately, wait for it afterwards instead.
    """
    ours = not Path("/run/systemd/system").exists()
    _udevadm("settle")
    if ours:
        _end()
    try:
        yield
    finally:
        if ours:
            words = [_DAEMON, "--daemon", "--resolve-names=early"]
            subprocess.run(words, check=True, stderr=subprocess.DEVNULL, timeout=_SECONDS)
            _udevadm("control", "--ping")  # it listens to the kernel only behind its fork
        else:
            _udevadm("settle")


def udevds() -> list[int]:
    """Return the processes of udevd, those of its workers too."""
    found = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text() in ("systemd-udevd\n", "(udev-worker)\n"):
                found.append(int(comm.parent.name))
    return found


def _end() -> None:
    """End udevd, which is idle: where two of them handle an event, the next loses its links.

    Not by `udevadm control --exit`: one time in twenty udevd 252 sleeps on after it, with no worker
    left and the end of the last one unseen, until some other signal wakes it (seen on 6.12).
    """
    deadline = time.monotonic() + _SECONDS
    while left := udevds():
        assert time.monotonic() < deadline, f"udevd has not ended: {left}"
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _udevadm(*words: str) -> None:
    subprocess.run(["udevadm", *words, f"--timeout={_SECONDS}"], check=True)
