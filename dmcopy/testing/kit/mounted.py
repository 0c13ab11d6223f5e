"""File systems that a test has mounted on its devices."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from typing import Final

from dmcopy.block import sysfs, tools
from dmcopy.block.devno import split_devno
from dmcopy.block.mounts import Mount, parse_mountinfo
from dmcopy.errors import BusyError

_SECONDS: Final = 120.0


def mounts_of(paths: Iterable[str]) -> list[Mount]:
    """Return what is mounted from the devices at these paths, or on these files; newest first."""
    known = [path for path in paths if path]
    numbers = {split_devno(number) for number in map(_number, known) if number}
    table = parse_mountinfo(sysfs.read(f"{sysfs.LIVE.proc}/self/mountinfo"))
    return [mount for mount in reversed(table) if mount.devno in numbers]


def unmount(paths: Iterable[str]) -> None:
    """Unmount all of it. Raises BusyError for what a process uses."""
    for mount in mounts_of(paths):
        done = tools.run(["umount", "--", mount.point], timeout=_SECONDS)
        if done.returncode:
            raise BusyError(mount.point, [], f"it cannot be unmounted: {done.stderr.strip()}")


def _number(path: str) -> int:
    try:
        found = os.stat(path)
    except OSError:
        return 0
    return found.st_rdev if stat.S_ISBLK(found.st_mode) else 0
