"""A handle on a mapped device: what a `Mapper` can do, with the name filled in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dmcopy.mapper.stats import StatsRegion
from dmcopy.status import Status, StatusLine
from dmcopy.table import Table

if TYPE_CHECKING:
    from dmcopy.mapper.base import DmInfo, Mapper
    from dmcopy.mapper.mapped_io import MappedIo


class DmDevice:
    """A mapped device of `mapper`. Can be opened: `open(device)` opens its node."""

    def __init__(self, mapper: Mapper, name: str) -> None:
        self.mapper = mapper
        self.name = name

    def __repr__(self) -> str:
        return f"<DmDevice {self.name!r}>"

    def __fspath__(self) -> str:
        return self.path

    @property
    def path(self) -> str:
        """The path at which the device can be opened."""
        return self.mapper.path(self.name)

    @property
    def info(self) -> DmInfo:
        """What the engine knows of it now."""
        return self.mapper.info(self.name)

    @property
    def table(self) -> Table:
        return self.mapper.table(self.name)

    @property
    def status(self) -> Status:
        """The status of the first line of the table, which for most devices is the only one."""
        return self.statuses[0].status

    @property
    def statuses(self) -> tuple[StatusLine, ...]:
        """The status of every line of the table."""
        return self.mapper.status(self.name)

    def open(self) -> MappedIo:
        return self.mapper.open(self.name)

    @contextlib.contextmanager
    def paused(self, *, flush: bool = True, lockfs: bool = True) -> Iterator[DmDevice]:
        """Suspend for the length of a `with` block; a table loaded meanwhile is active after it."""
        self.suspend(flush=flush, lockfs=lockfs)
        try:
            yield self
        finally:
            self.resume(flush=flush, lockfs=lockfs)

    def swap(self, table: Table, *, flush: bool = True, lockfs: bool = True) -> None:
        self.mapper.swap(self.name, table, flush=flush, lockfs=lockfs)

    def load(self, table: Table) -> None:
        """Load `table` beside the active one; the next resume swaps it in."""
        self.mapper.load(self.name, table)

    def suspend(self, *, flush: bool = True, lockfs: bool = True) -> None:
        self.mapper.suspend(self.name, flush=flush, lockfs=lockfs)

    def resume(self, *, flush: bool = True, lockfs: bool = True) -> None:
        self.mapper.resume(self.name, flush=flush, lockfs=lockfs)

    def rename(self, new_name: str) -> None:
        """Give the device another name; the handle goes with it."""
        self.mapper.rename(self.name, new_name)
        self.name = new_name

    def remove(self) -> None:
        self.mapper.remove(self.name)

    def message(self, *words: str, sector: int = 0) -> str:
        """Send words to the target at `sector`; return its answer."""
        return self.mapper.message(self.name, *words, sector=sector)

    def wait(self, event: int | None = None, *, timeout: float) -> int:
        """Wait for an event after number `event`, by default after now; return the new number."""
        since = self.info.events if event is None else event
        return self.mapper.wait(self.name, since, timeout=timeout)

    def measure(self, start: int | None = None, length: int | None = None) -> StatsRegion:
        """Count the I/O to sectors from `start` on, by default to the whole device."""
        return StatsRegion.create(self, start, length)
