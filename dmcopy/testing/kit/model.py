"""Tests on the model: dmcopy's own engine, in this process, on a thread of its own.

Programs see a device only where a test asks for its path: then it is served as a loop device (as
root) or as a file. Until then nothing but memory is touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dmcopy.block import BlockDevice, file_mounts, tools
from dmcopy.block.devno import openable
from dmcopy.export.base import FrontEnd
from dmcopy.export.fuse.files import FuseFiles
from dmcopy.export.loop import LoopDevices
from dmcopy.export.volatile import VolatileDisk
from dmcopy.io.layer import Layer
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device
from dmcopy.io.thread import ReactorThread
from dmcopy.ledger import Ledger
from dmcopy.mapper.base import Mapper
from dmcopy.mapper.userspace import UserMapper
from dmcopy.testing.kit.environment import Environment, LackingError
from dmcopy.testing.troubled import TroubledDisk

_T = TypeVar("_T")


class Model(Environment):
    """See `Environment`."""

    label = "model"
    _mapper: UserMapper

    def __init__(self, ledger: Ledger | None = None, *, volatile: bool = False) -> None:
        super().__init__(ledger, volatile=volatile)
        self._disks: dict[str, Layer] = {}
        self._files: dict[str, BlockDevice] = {}
        self._served: dict[str, str] = {}
        self._front: FrontEnd | None = None
        self._thread = ReactorThread(stacked=True, name="dmcopy-model")
        self._mapper = self._thread.call(
            lambda reactor: UserMapper(reactor, open_device=self._open)
        )

    def call(self, what: Callable[[Mapper], _T]) -> _T:
        return self._thread.call(lambda _reactor: what(self._mapper))

    def perform(self, what: Callable[[Reactor], _T]) -> _T:
        return self._thread.call(what)

    def make_disk(self, file: Path, block_size: int, seed: int | None = None) -> str:
        word = str(file)

        def make(reactor: Reactor) -> None:
            disk = self._disk_over(self._files[word], word, reactor, block_size, seed)
            self._disks[word] = disk
            if isinstance(disk, TroubledDisk):
                self.troubles[word] = disk

        self._files[word] = BlockDevice.open(file, write=True, direct=False, claim=False)
        self._thread.call(make)
        return word

    def drop_disk(self, word: str) -> None:
        self.hide(word)
        del self._disks[word]

        def close(reactor: Reactor) -> None:
            reactor.step()  # an io_uring lets go of a device only when it is entered
            self._files.pop(word).close()

        self._thread.call(close)

    def device(self, word: str) -> Device:
        if word in self._disks:
            return self._disks[word]
        return self.call(lambda mapper: mapper.open(os.path.basename(word)))

    def path(self, word: str) -> str:
        if word not in self._served:
            self._served[word] = self._thread.call(lambda reactor: self._serve(reactor, word))
        return self._served[word]

    def node(self, word: str) -> str:
        return self._served.get(word, "")

    def word_of(self, path: str) -> str:
        return next((word for word, served in self._served.items() if served == path), path)

    def hide(self, word: str) -> None:
        if word in self._served:
            front = self._front
            assert front is not None
            self._thread.call(lambda _: front.remove(os.path.basename(word)))
            del self._served[word]

    def lose(self, seed: int | None) -> None:
        for disk in self._disks.values():
            lose_cache(self._thread, disk, seed)

    def close(self) -> None:
        with contextlib.ExitStack() as exits:
            exits.callback(shutil.rmtree, self.folder, ignore_errors=True)
            exits.callback(self._thread.close)
            exits.callback(self._close_files)
            exits.callback(lambda: self._thread.call(lambda _: self._mapper.close()))
            if self._front is not None:
                front = self._front
                exits.callback(lambda: self._thread.call(lambda _: front.close()))

    def _close_files(self) -> None:
        for word in list(self._files):
            self._files.pop(word).close()

    def _open(self, path: str, write: bool) -> Device:
        if path in self._disks:
            return self._disks[path]
        return BlockDevice.open(os.path.realpath(openable(path)), write=write)

    def _serve(self, reactor: Reactor, word: str) -> str:
        if self._front is None:
            self._front = front_end()(reactor, ledger=self.ledger)
        name = os.path.basename(word)
        device: Device = self._disks[word] if word in self._disks else self._mapper.open(name)
        return self._front.add(name, device)


def front_end() -> type[LoopDevices | FuseFiles]:
    """Return what serves devices to programs here. Raises LackingError where nothing can."""
    load_fuse()
    if not LoopDevices.why_not():
        return LoopDevices
    reason = FuseFiles.why_not()
    if reason:
        raise LackingError(f"the model's devices have no path for programs here: {reason}")
    return FuseFiles


def load_fuse() -> None:
    """Load the module behind /dev/fuse, as root: in a guest nothing has, and no open would."""
    if os.geteuid() == 0 and not os.path.exists(file_mounts.DEVICE) and tools.which("modprobe"):
        tools.run(["modprobe", "--quiet", "fuse"], timeout=60)


def lose_cache(thread: ReactorThread, disk: Device, seed: int | None) -> None:
    """Cut the power of a disk whose reactor is on `thread`, and have it back."""
    while not isinstance(disk, VolatileDisk):
        if not isinstance(disk, Layer):
            return  # it has no cache
        disk = disk.below
    volatile = disk

    def cut(reactor: Reactor) -> None:
        back: list[bool] = []
        volatile.cut(seed, lambda: back.append(True))
        reactor.run_until(lambda: back, 60, f"what is kept of {volatile.path}")

    thread.call(cut)
