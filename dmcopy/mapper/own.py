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
    if file_mounts.why_not():
        return str(folder_path() / f"{mangle(name)}.nbd")
    if os.geteuid() == 0 and os.path.exists("/dev/loop-control"):
        return f"{nodes_folder()}/{mangle(name)}"
    return str(folder_path() / mangle(name))


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
        """Return the node of a device."""
        return node_path(name)

    def resolve(self, word: str) -> str:
        """Return what the server calls a table's device; what is not its own is left as it is.

        Raises UsageError for what stands on one of them by way of the kernel: to open it, the
        server would have to wait for itself.
        """
        name = self.name(word)
        if name:
            return self.path(name)
        below = self._below(word) if self._numbers() else ""
        if below:
            raise UsageError(
                f"{word} stands on {self.path(below)}, and the server of that would wait for "
                "itself: name the device itself in the table"
            )
        return word if is_devno(word) else os.path.abspath(word)  # noqa: PTH100

    def name(self, word: str) -> str:
        """Return the name of the device that `word` is a path or the number of, "" if none."""
        for folder in (_KERNELS, f"{nodes_folder()}/", f"{folder_path()}/"):
            named = unmangle(word.removeprefix(folder)) if word.startswith(folder) else ""
            if named in self._infos:
                return named
        number = word if is_devno(word) else ""
        with contextlib.suppress(OSError, ValueError):
            if found := block_devno(os.stat(word)):
                number = devno_text(found)
        if number:
            return self._numbers().get(number, "")
        real = os.path.realpath(word)
        return next((name for name in self._infos if self.path(name) == real), "")

    def _numbers(self) -> dict[str, str]:
        return {info.devno: name for name, info in self._infos.items() if info.devno}

    def _below(self, word: str) -> str:
        """Return the name of one of these devices on which `word` stands."""
        from dmcopy.block import backing, sysfs
        from dmcopy.block.devno import openable, split_devno
        from dmcopy.block.processes import identity_of

        numbers = self._numbers()
        try:
            todo = [sysfs.name_of(split_devno(identity_of(os.stat(openable(word)))[1]))]
        except (OSError, ValueError):
            return ""
        seen: set[str] = set()
        while todo:
            device = todo.pop()
            number = sysfs.devno(device) if device else None
            if number is None or device in seen:
                continue
            seen.add(device)
            if devno_text(number) in numbers:
                return numbers[devno_text(number)]
            todo += [*sysfs.slaves(device), sysfs.parent(device)]
            made_of = backing.of(device)
            if made_of and made_of.identity:
                todo.append(sysfs.name_of(split_devno(made_of.identity[1])))
        return ""
