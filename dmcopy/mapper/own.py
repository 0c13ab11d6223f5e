"""Which devices of a table are the device server's own, whatever they are called there."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Final

from dmcopy.block import file_mounts
from dmcopy.block.devno import block_devno, devno_text, is_devno
from dmcopy.errors import UsageError
from dmcopy.mapper.base import DmInfo
from dmcopy.mapper.names import mangle, unmangle
from dmcopy.runtime import folder_path, nodes_folder

_KERNELS: Final = "/dev/mapper/"


def node_path(name: str) -> str:
    """Return what a device of the server is opened by, whether it is there or not."""
    no_file = file_mounts.why_not()
    loops = os.path.exists("/dev/loop-control") and not no_file
    drivers = ("/dev/ublk-control", "/sys/module/nbd")
    if os.geteuid() == 0 and (loops or any(map(os.path.exists, drivers))):
        return f"{nodes_folder()}/{mangle(name)}"
    return str(folder_path() / (f"{mangle(name)}.nbd" if no_file else mangle(name)))


class OwnDevices:
    """The devices that `ls` lists, and their nodes. It is for the server's clients only.

    The server itself can look at none of them: it would wait for its own answer.
    """

    def __init__(self, ls: Callable[[], list[DmInfo]]) -> None:
        self._ls = ls

    @functools.cached_property
    def _infos(self) -> dict[str, DmInfo]:
        return {info.name: info for info in self._ls()}

    def path(self, name: str) -> str:
        return node_path(name)

    def resolve(self, word: str) -> str:
        """Return what the server calls a table's device; what is not its own is left as it is.

        Raises UsageError for what stands on one of them by way of the kernel: to open it, the
        server would have to wait for itself.
        """
        name = self.name(word)
        if name:
            return self.path(name)
        below = self._below(word) if self._infos else ""
        if below:
            raise UsageError(
                f"{word} stands on {self.path(below)}, and the server of that would wait for "
                "itself: name the device itself in the table"
            )
        if is_devno(word):
            return word
        if os.path.realpath(os.path.dirname(word)).startswith("/proc/"):
            return os.path.realpath(word)  # what it is here, it is not in the server
        return os.path.abspath(word)  # noqa: PTH100 - symbolic links stay

    def name(self, word: str) -> str:
        """Return the name of the device that `word` is a path or the number of, "" if none."""
        for folder in (_KERNELS, f"{nodes_folder()}/", f"{folder_path()}/"):
            named = unmangle(word.removeprefix(folder)) if word.startswith(folder) else ""
            if named in self._infos:
                return named
        number = word if is_devno(word) else ""
        with contextlib.suppress(OSError, ValueError):
            status = os.stat(word)
            if found := block_devno(status):
                number = devno_text(found)
            elif file := self._files.get(devno_text(status.st_dev)):
                return file
        return self._numbers.get(number, "")

    @functools.cached_property
    def _numbers(self) -> dict[str, str]:
        return {info.devno: name for name, info in self._infos.items() if info.devno}

    @functools.cached_property
    def _files(self) -> dict[str, str]:
        """The names by the numbers of the file systems that the files of these devices are.

        There is nothing else on each. As root, it is below the loop device that is the node.
        """
        from dmcopy.block import sysfs

        found = {}
        for name, info in self._infos.items():
            file = self.path(name)
            if info.number is not None:
                file = sysfs.backing_file(sysfs.name_of(info.number))
            with contextlib.suppress(OSError):
                number = os.stat(file).st_dev
                if number != os.stat(os.path.dirname(file)).st_dev:
                    found[devno_text(number)] = name
        return found

    def _below(self, word: str) -> str:
        """Return the name of one of these devices on which `word` stands."""
        from dmcopy.block import backing, sysfs
        from dmcopy.block.devno import openable, split_devno
        from dmcopy.block.mounts import parse_mountinfo
        from dmcopy.block.processes import identity_of

        try:
            todo = [split_devno(identity_of(os.stat(openable(word)))[1])]
        except (OSError, ValueError):
            return ""
        own = self._numbers | self._files
        seen = set()
        while todo:
            number = todo.pop()
            if devno_text(number) in own:
                return own[devno_text(number)]
            if number in seen:
                continue
            seen.add(number)
            device = sysfs.name_of(number)
            if not device:  # of a file system that is on no single device, as btrfs
                mounts = parse_mountinfo(sysfs.read(f"{sysfs.LIVE.proc}/self/mountinfo"))
                for mount in mounts:
                    with contextlib.suppress(OSError):
                        if mount.devno == number and (on := block_devno(os.stat(mount.source))):
                            todo.append(on)
                continue
            names = filter(None, [*sysfs.slaves(device), sysfs.parent(device)])
            todo += filter(None, map(sysfs.devno, names))
            made_of = backing.of(device)
            if made_of and made_of.identity:
                todo.append(split_devno(made_of.identity[1]))
        return ""
