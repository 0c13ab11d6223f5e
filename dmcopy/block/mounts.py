"""What the kernel says of mounts, swap areas and file locks: /proc's tables, parsed."""

from __future__ import annotations

import re
from typing import NamedTuple

from dmcopy.block import sysfs
from dmcopy.block.devno import DevNo, parse_devno

_OCTAL = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of /proc/PID/mountinfo (proc_pid_mountinfo(5)).

    `root` is the directory of the file system that is mounted: not "/" for a bind mount or a
    subvolume. `devno` has major 0 where the file system is on no single device (btrfs).
    """

    devno: DevNo
    root: str
    point: str
    fstype: str
    source: str


class FileLock(NamedTuple):
    """One line of /proc/locks: who holds what on which inode."""

    kind: str
    pid: int
    devno: DevNo
    inode: int


def unescape(text: str) -> str:
    r"""Return a /proc path as it is: the kernel writes space, tab, newline and \ in octal."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def parse_mountinfo(text: str) -> list[Mount]:
    # Not splitlines: the kernel escapes newlines in names, but no other of Unicode's ends of lines.
    return [_parse_mount(line) for line in text.split("\n") if " - " in line]


def mount_of(fd: int) -> Mount | None:
    """Return the mount through which `fd` was opened, without a question to its file system.

    So it can be asked about what this very process serves, with a descriptor of O_PATH.
    """
    fields = sysfs.read(f"{sysfs.LIVE.proc}/self/fdinfo/{fd}").split()
    number = fields[fields.index("mnt_id:") + 1] if "mnt_id:" in fields else ""
    lines = sysfs.read(f"{sysfs.LIVE.proc}/self/mountinfo").split("\n")
    found = [line for line in lines if line.startswith(f"{number} ") and " - " in line]
    return _parse_mount(found[0]) if found else None


def _parse_mount(line: str) -> Mount:
    # Any number of optional fields stands before the lone dash.
    before, _, after = line.partition(" - ")
    _id, _parent, devno, root, point, *_ = before.split(" ")
    fstype, source, *_ = after.split(" ")
    return Mount(parse_devno(devno), unescape(root), unescape(point), fstype, unescape(source))


def parse_swaps(text: str) -> list[str]:
    """Return the paths of the swap areas in the text of /proc/swaps."""
    return [unescape(re.split("[ \t]", line)[0]) for line in text.split("\n")[1:] if line]


def parse_locks(text: str) -> list[FileLock]:
    """Parse /proc/locks. Waiting locks (marked `->`) hold nothing and are left out."""
    locks = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 8 or words[1] == "->":
            continue
        major_minor, _, inode = words[5].rpartition(":")
        locks.append(FileLock(words[1], int(words[4]), parse_devno(major_minor, 16), int(inode)))
    return locks
