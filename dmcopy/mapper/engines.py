"""The two engines by their names, and what a plain file becomes where a table names one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from dmcopy.block.loop import loop_device
from dmcopy.block.processes import Identity, identity_at
from dmcopy.ledger import Ledger
from dmcopy.mapper.base import Mapper
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.userspace import UserMapper

EngineName = Literal["kernel", "user"]


@dataclass(frozen=True)
class MapperOverFiles:
    """A mapper; `lower` returns the path of the device that a word of a table stands for."""

    mapper: Mapper
    lower: Callable[[str], str]


@contextlib.contextmanager
def engine(
    name: EngineName,
    *,
    timeout: float = 30.0,
    ledger: Ledger | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> Iterator[MapperOverFiles]:
    """Start an engine for the length of a `with` block.

    `timeout`, in seconds, bounds each call and each I/O; `say` is told what becomes of files: for
    the kernel they are loop devices, and in userspace they are devices as they are.
    """
    if name == "user":
        with UserMapper(timeout=timeout) as user:
            yield MapperOverFiles(user, lambda word: word)
        return
    with contextlib.ExitStack() as exits:
        kernel = KernelMapper(ledger=ledger, timeout=timeout)
        loops: dict[Identity | None, str] = {}

        def lower(word: str) -> str:
            if not os.path.isfile(word):
                return word
            file = identity_at(word)  # by whatever name
            if file not in loops:
                device = exits.enter_context(loop_device(word, ledger=kernel.ledger))
                say(f"{word} is {device.path} while this runs")
                loops[file] = device.path
            return loops[file]

        yield MapperOverFiles(exits.enter_context(kernel), lower)
