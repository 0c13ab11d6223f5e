"""Whether udev makes the nodes of mapped devices here, or dmsetup must: found by looking.

dmsetup hands the kernel a cookie, a SysV semaphore, and waits until udevd's rules have given it
back. Where udevd does not run, or runs in another IPC namespace (a container with the host's /run),
it is never given back. And without udevd nothing makes /dev/mapper/NAME, unless dmsetup is told to.
"""

from __future__ import annotations

import enum
import os
from pathlib import Path

from dmcopy.block import sysfs

_DAEMONS = {"systemd-udevd", "(udev-worker)", "udevd", "eudev"}
_last = ""
"""The process that was found the last time: to look at all of them takes long, and it is there."""


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
    global _last
    if not (_last and _answers(proc, _last)):
        processes = filter(str.isdecimal, os.listdir(proc))
        _last = next((process for process in processes if _answers(proc, process)), "")
    return Udev.COOKIES if _last else Udev.NODES


def _answers(proc: Path, process: str) -> bool:
    """Whether a process is a udevd that shares our semaphores."""
    is_udevd = sysfs.read(f"{proc}/{process}/comm") in _DAEMONS
    return is_udevd and _ipc(proc, process) == _ipc(proc, "self")


def _ipc(proc: Path, process: str) -> str:
    try:
        return os.readlink(f"{proc}/{process}/ns/ipc")
    except OSError:
        return ""
