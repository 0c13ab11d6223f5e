"""The interface of a place where tests run: disks, a mapper, I/O, and paths for programs."""

from __future__ import annotations

import abc
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dmcopy.closing import Closing
from dmcopy.errors import MissingError
from dmcopy.export.volatile import VolatileDisk
from dmcopy.io.layer import Layer
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device
from dmcopy.ledger import Ledger
from dmcopy.mapper.base import Mapper
from dmcopy.testing.kit.switched import Power, SwitchedDisk
from dmcopy.testing.troubled import TroubledDisk

_T = TypeVar("_T")


class LackingError(MissingError):
    """This machine lacks what a test wants of the place where it runs."""


class Environment(Closing, abc.ABC):
    """The place where one test runs, with the files of its disks in a folder of its own, in memory.

    A disk has a word, by which tables call it, and so has a mapped device. All methods are called
    on the test's thread. `volatile`: a disk has a write cache whose power can be cut.
    """

    label: str
    _mapper: Mapper

    def __init__(self, ledger: Ledger | None, *, volatile: bool) -> None:
        self.ledger = ledger or Ledger()
        self.volatile = volatile
        self.power = Power()
        self.troubles: dict[str, TroubledDisk] = {}
        parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="dmcopy-", dir=parent))

    def _disk_over(
        self, medium: Device, path: str, reactor: Reactor, block_size: int, seed: int | None
    ) -> Layer:
        """Return a disk over the device of its file, for `make_disk`."""
        below = VolatileDisk(medium, reactor) if self.volatile else medium
        disk = SwitchedDisk(path, below, reactor, block_size, self.power)
        return disk if seed is None else TroubledDisk(disk, reactor, seed=seed)

    def word(self, name: str) -> str:
        """Return the word of the mapped device of a name, whether it is there or not."""
        return self._mapper.path(name)

    @abc.abstractmethod
    def call(self, what: Callable[[Mapper], _T]) -> _T:
        """Call `what(mapper)`; return its result. Raises its exceptions."""

    @abc.abstractmethod
    def perform(self, what: Callable[[Reactor], _T]) -> _T:
        """Call `what(reactor)`, which does the I/O of `device`'s devices; return its result."""

    @abc.abstractmethod
    def make_disk(self, file: Path, block_size: int, seed: int | None = None) -> str:
        """Make a disk of a file with blocks of that many bytes; return its word.

        `seed`: of the chance by which it has the `troubles` that it is given; None: it has none.
        """

    @abc.abstractmethod
    def drop_disk(self, word: str) -> None:
        """Give a disk up. Raises BusyError for one that is in use."""

    @abc.abstractmethod
    def device(self, word: str) -> Device:
        """Open a disk or mapped device for I/O by its word, without a claim."""

    @abc.abstractmethod
    def path(self, word: str) -> str:
        """Return where programs find a disk or mapped device. Raises LackingError."""

    @abc.abstractmethod
    def node(self, word: str) -> str:
        """Return the path if there is one already, "" if no program has seen it."""

    @abc.abstractmethod
    def word_of(self, path: str) -> str:
        """Return the word of what programs find at `path`; the path itself where it is not ours."""

    @abc.abstractmethod
    def hide(self, word: str) -> None:
        """Take away what `path` made, if it made anything. Raises BusyError naming its users."""

    @abc.abstractmethod
    def lose(self, seed: int | None) -> None:
        """Lose what the caches of the disks hold, of each write all, nothing or some blocks.

        As the seed says; None: everything. The power must be off, and nothing may use the disks.
        """
