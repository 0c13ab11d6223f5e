"""Tests on this machine's kernel: loop devices over files in memory, and dmsetup.

In a guest, too: a guest is a machine whose kernel can be wrecked. A disk whose power can be cut, or
that may have troubles, is served by this process, on a thread of its own, as a loop device.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dmcopy.block import BlockDevice, syscalls
from dmcopy.block.loop import LoopDevice, attach, detach
from dmcopy.errors import DmcopyError
from dmcopy.export.loop import LoopDevices
from dmcopy.io.layer import Layer
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device
from dmcopy.io.thread import ReactorThread
from dmcopy.ledger import Ledger
from dmcopy.mapper.base import Mapper
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.testing.kit.environment import Environment, LackingError
from dmcopy.testing.kit.model import load_fuse, lose_cache
from dmcopy.testing.kit.removal import patiently
from dmcopy.testing.troubled import TroubledDisk

_T = TypeVar("_T")


class ThisHost(Environment):
    """See `Environment`. Words are nodes."""

    label = "host"
    _mapper: KernelMapper

    def __init__(self, ledger: Ledger | None = None, *, volatile: bool = False) -> None:
        super().__init__(ledger, volatile=volatile)
        self._mapper = KernelMapper(ledger=self.ledger)
        self._loops: dict[str, LoopDevice] = {}
        self._served: dict[str, Layer] = {}
        self._names: dict[str, str] = {}
        self._files: list[BlockDevice] = []
        self._media: list[BlockDevice] = []
        self._server: ReactorThread | None = None
        self._front: LoopDevices | None = None

    def call(self, what: Callable[[Mapper], _T]) -> _T:
        return what(self._mapper)

    def perform(self, what: Callable[[Reactor], _T]) -> _T:
        return what(self._mapper.reactor)

    def make_disk(self, file: Path, block_size: int, seed: int | None = None) -> str:
        if self.volatile or seed is not None:
            return self._serve(file, block_size, seed)
        # In memory there is no page cache to go past, and before 6.6 losetup would try in vain.
        loop = attach(file, direct=False, sector_size=block_size, ledger=self.ledger)
        self._loops[loop.path] = loop
        return loop.path

    def drop_disk(self, word: str) -> None:
        if word in self._served:
            front, server = self._front, self._server
            assert front is not None
            assert server is not None
            server.call(lambda _: front.remove(self._names[word]))
            del self._served[word]
        else:
            # Once: one that is in use is gone with its last user.
            patiently(functools.partial(detach, self._loops.pop(word)), word)

    def device(self, word: str) -> Device:
        if self.is_disk(word):
            self._files.append(BlockDevice.open(word, write=True, claim=False))
            return self._files[-1]
        return self._mapper.open(os.path.basename(word))

    def is_disk(self, word: str) -> bool:
        """Whether this is one of the disks, not a mapped device."""
        return word in self._loops or word in self._served

    def path(self, word: str) -> str:
        return word

    def node(self, word: str) -> str:
        return word

    def word_of(self, path: str) -> str:
        return path

    def hide(self, word: str) -> None:
        del word

    def lose(self, seed: int | None) -> None:
        for node, disk in self._served.items():
            _forget_pages(node)
            assert self._server is not None
            lose_cache(self._server, disk, seed)

    def close(self) -> None:
        with contextlib.ExitStack() as exits:
            exits.callback(shutil.rmtree, self.folder, ignore_errors=True)
            for medium in self._media:
                exits.callback(medium.close)
            if self._server is not None:
                exits.callback(self._server.close)
            for word in [*self._loops, *self._served]:
                exits.callback(self.drop_disk, word)
            exits.callback(self._mapper.close)
            for file in self._files:
                exits.callback(file.close)

    def _serve(self, file: Path, block_size: int, seed: int | None) -> str:
        if self._server is None:
            load_fuse()
            if reason := LoopDevices.why_not():
                raise LackingError(f"this process cannot serve the disks: {reason}")
            self._server = ReactorThread(stacked=True, name="dmcopy-disks")

        def serve(reactor: Reactor) -> str:
            if self._front is None:
                self._front = LoopDevices(reactor, ledger=self.ledger)
            self._media.append(BlockDevice.open(file, write=True, claim=False))
            disk = self._disk_over(self._media[-1], str(file), reactor, block_size, seed)
            node = self._front.add(file.name, disk)
            self._served[node], self._names[node] = disk, file.name
            if isinstance(disk, TroubledDisk):
                self.troubles[node] = disk
            return node

        return self._server.call(serve)


def _forget_pages(node: str) -> None:
    """Empty the page cache of a block device: what is dirty is written, to a disk that is off."""
    with contextlib.suppress(OSError, DmcopyError):
        fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.flush_buffers(fd)
        finally:
            os.close(fd)
