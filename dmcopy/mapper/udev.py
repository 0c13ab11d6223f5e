"""Whether udev makes the nodes of mapped devices here, or dmsetup must: found by looking.

dmsetup hands the kernel a cookie, a SysV semaphore, and waits until udevd's rules have given it
back. Where udevd does not run, or runs in another IPC namespace (a container with the host's /run),
it is never given back. And without udevd nothing makes /dev/mapper/NAME, unless dmsetup is told to.
"""

from __future__ import annotations

import enum
import os
from pathlib import Path

_DAEMONS = {"systemd-udevd", "(udev-worker)", "udevd", "eudev"}


class Udev(enum.Enum):
    """How nodes come about."""

    COOKIES = "cookies"  # udevd makes them; dmsetup waits for it
    NODES = "nodes"  # dmsetup makes them itself
    NONE = "none"  # udevd makes them, some time after dmsetup has returned

    @property
    def environment(self) -> dict[str, str]:
        """What to add to the environment of dmsetup."""
        return {"DM_DISABLE_UDEV": "1"} if self is Udev.NODES else {}

    @property
    def options(self) -> list[str]:
        """What to tell dmsetup for a command that makes or removes a node."""
        return ["--noudevsync"] if self is Udev.NONE else []


def choose(proc: Path = Path("/proc"), run: Path = Path("/run")) -> Udev:
    """Return COOKIES where a udevd answers us, NODES elsewhere; never waits for anything."""
    if not (run / "udev" / "control").exists():
        return Udev.NODES
    ours = _ipc(proc / "self")
    found = any(_ipc(process) == ours for process in _udevds(proc))
    return Udev.COOKIES if found else Udev.NODES


def _udevds(proc: Path) -> list[Path]:
    found = []
    for entry in proc.iterdir():
        if entry.name.isdecimal():
            try:
                name = (entry / "comm").read_text().strip()
            except OSError:  # it ended meanwhile
                continue
            if name in _DAEMONS:
                found.append(entry)
    return found


def _ipc(process: Path) -> str:
    try:
        return os.readlink(process / "ns" / "ipc")
    except OSError:
        return ""
