"""Which processes have a device or file open, from /proc/PID/fd."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from dmcopy.block import sysfs
from dmcopy.block.devno import DevNo
from dmcopy.block.sysfs import LIVE, Roots
from dmcopy.errors import raise_passing

Identity: TypeAlias = tuple[str, int] | tuple[str, int, int]
"""What makes two paths the same thing: ("block", st_rdev) or ("file", st_dev, st_ino)."""


def identity_of(status: os.stat_result) -> Identity:
    """Return the identity of what `os.stat` described."""
    if stat.S_ISBLK(status.st_mode):
        return ("block", status.st_rdev)
    return ("file", status.st_dev, status.st_ino)


def block_identity(number: DevNo) -> Identity:
    """Return the identity of a block device."""
    return ("block", os.makedev(*number))


def identity_at(path: str | os.PathLike[str]) -> Identity | None:
    """Return the identity of what is at `path`, None when there is nothing to be seen."""
    try:
        return identity_of(os.stat(path))
    except ValueError:
        return None
    except OSError as error:
        raise_passing(error)
        return None


def openers(wanted: Mapping[Identity, str], roots: Roots = LIVE) -> list[tuple[int, str]]:
    """Return (pid, path) of each process that has one of the things `wanted` (values: paths) open.

    Only descriptors whose link looks like a device node or ends in one of the names are followed:
    stat(2) of any odd file would hang on a network file system whose server is gone. So a node of
    another name outside /dev is not seen, nor is what belongs to other users when not root.
    """
    endings = tuple(f"/{os.path.basename(path)}" for path in wanted.values())
    nodes = f"{roots.dev}/" if any(kind == "block" for kind, *_ in wanted) else "\0"
    found = set()
    for pid in _pids(roots):
        for link, target in _descriptors(roots, pid):
            if target.endswith(endings) or target.startswith(nodes):
                identity = identity_at(link)
                if identity and identity in wanted:
                    found.add((pid, wanted[identity]))
    return sorted(found)


def below(folder: str, roots: Roots = LIVE) -> list[int]:
    """Return the processes that have a file in a folder open, or work there: by their paths."""
    found = []
    for pid in _pids(roots):
        paths = [target for _, target in _descriptors(roots, pid)]
        for name in ("cwd", "root"):
            with contextlib.suppress(OSError):
                paths.append(os.readlink(f"{roots.proc}/{pid}/{name}"))
        if any(path == folder or path.startswith(f"{folder}/") for path in paths):
            found.append(pid)
    return found


def command(pid: int, roots: Roots = LIVE) -> str:
    """Return the name of a process; "" when it is gone."""
    name = sysfs.read(f"{roots.proc}/{pid}/comm")
    first = sysfs.read(f"{roots.proc}/{pid}/cmdline").split("\0")[0]
    longer = os.path.basename(first)
    # comm ends after 15 characters, which makes qemu-system-x86_64 and qemu-system-x86 the same.
    return longer if longer.startswith(name) else name


def is_of_udev(pid: int, roots: Roots = LIVE) -> bool:
    """Whether a process is udev's, or one that udev has started; or gone, which those soon are."""
    while pid > 1:
        if "udev" in sysfs.read(f"{roots.proc}/{pid}/comm"):  # systemd-udevd, (udev-worker)
            return True
        # Behind the name, in brackets, which may have any character: state, parent …
        words = sysfs.read(f"{roots.proc}/{pid}/stat").rpartition(")")[2].split()
        if not words:
            return True
        pid = int(words[1])
    return False


def in_other_namespaces(roots: Roots = LIVE) -> Iterator[int]:
    """Yield one process of each mount namespace that is not our own."""
    seen = {_namespace(roots, "self")}
    for pid in _pids(roots):
        namespace = _namespace(roots, str(pid))
        if namespace and namespace not in seen:
            seen.add(namespace)
            yield pid


def _namespace(roots: Roots, pid: str) -> str:
    try:
        return os.readlink(f"{roots.proc}/{pid}/ns/mnt")
    except OSError:
        return ""


def _pids(roots: Roots) -> list[int]:
    return sorted(int(name) for name in sysfs.entries(roots.proc) if name.isdecimal())


def _descriptors(roots: Roots, pid: int) -> Iterator[tuple[str, str]]:
    folder = f"{roots.proc}/{pid}/fd"
    for number in sysfs.entries(folder):
        link = f"{folder}/{number}"
        try:
            yield link, os.readlink(link)
        except OSError:  # closed meanwhile
            continue
