"""The two engines as `dmcopy.mapper.session` uses them: where I/O goes, what files become."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, Literal, TypeVar

from dmcopy.block import BlockDevice
from dmcopy.block.loop import loop_device
from dmcopy.block.processes import Identity, identity_at
from dmcopy.errors import DeadlineError
from dmcopy.ledger import Ledger
from dmcopy.mapper.base import Mapper
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.session import Engine, Handle
from dmcopy.mapper.userspace import UserMapper

EngineName = Literal["kernel", "user"]
ENGINES: Final[tuple[EngineName, ...]] = ("kernel", "user")
_T = TypeVar("_T")


class _Node:
    """A device node, past the page cache. I/O that does not end is given up, and left to itself."""

    def __init__(self, path: str, timeout: float, *, write: bool) -> None:
        # Nothing to claim: the device was made for this session, and may be under another of it.
        self._device = BlockDevice.open(path, write=write, claim=False, direct=True)
        self._timeout = timeout

    def read(self, sector: int, count: int) -> bytes:
        return self._bounded(lambda: self._device.pread(sector, count))

    def write(self, sector: int, data: bytes) -> None:
        self._bounded(lambda: self._device.pwrite(sector, data))

    def flush(self) -> None:
        self._bounded(self._device.flush)

    def discard(self, sector: int, count: int) -> None:
        self._bounded(lambda: self._device.discard(sector, count))

    def close(self) -> None:
        self._device.close()

    def _bounded(self, action: Callable[[], _T]) -> _T:
        found: list[_T] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                found.append(action())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(self._timeout)
        if thread.is_alive():
            path = self._device.path
            raise DeadlineError(f"{path}: its I/O did not end within {self._timeout:g} s")
        if errors:
            raise errors[0]
        return found[0]


class KernelEngine:
    """The kernel's devices, through their nodes; a plain file becomes a loop device."""

    def __init__(
        self,
        mapper: KernelMapper,
        exits: contextlib.ExitStack,
        *,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.mapper: Mapper = mapper
        self._ledger = mapper.ledger
        self._timeout = mapper.timeout
        self._exits = exits
        self._say = say
        self._loops: dict[Identity | None, str] = {}
        self._nodes: dict[str, _Node] = {}

    def lower(self, word: str) -> str:
        """Return the path of a device; a plain file's is its loop device's, by whatever name."""
        if not os.path.isfile(word):
            return word
        file = identity_at(word)
        if file not in self._loops:
            device = self._exits.enter_context(loop_device(word, ledger=self._ledger))
            self._say(f"{word} is {device.path} while this runs")
            self._loops[file] = device.path
        return self._loops[file]

    def open(self, name: str) -> Handle:
        """Open the node of a device."""
        if name not in self._nodes:
            write = not self.mapper.info(name).readonly
            self._nodes[name] = _Node(self.mapper.path(name), self._timeout, write=write)
        return self._nodes[name]

    def forget(self, name: str) -> None:
        """Close the node of a device."""
        if name in self._nodes:
            self._nodes.pop(name).close()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class UserEngine:
    """The userspace engine's devices, which are in this process."""

    def __init__(self, mapper: UserMapper) -> None:
        self.mapper: Mapper = mapper
        self._user = mapper

    def lower(self, word: str) -> str:
        """Return the path as it is: files are devices here."""
        return word

    def open(self, name: str) -> Handle:
        """Return the device."""
        return self._user.open(name)

    def forget(self, name: str) -> None:
        """Do nothing: there is nothing to close."""

    def sleep(self, seconds: float) -> None:
        """Let the reactor run for a while."""
        with contextlib.suppress(DeadlineError):
            self._user.reactor.run_until(lambda: False, seconds)


@contextlib.contextmanager
def engine(
    name: EngineName,
    *,
    timeout: float = 30.0,
    ledger: Ledger | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> Iterator[Engine]:
    """Start an engine for the length of a `with` block.

    `timeout`, in seconds, bounds each call and each I/O; `say` is told what becomes of files.
    """
    with contextlib.ExitStack() as exits:
        if name == "user":
            yield UserEngine(exits.enter_context(UserMapper(timeout=timeout)))
        else:
            yield KernelEngine(KernelMapper(ledger=ledger, timeout=timeout), exits, say=say)
