"""One change of one device: what the plans of all workflows are made of, and the journal keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dmcopy.mapper.base import check_name
from dmcopy.table import Table

ON_MAPPER: Final = ("create", "load", "suspend", "resume", "remove")
ON_DEVICES: Final = (*ON_MAPPER, "retire", "swap", "settle", "freeze", "replace")
ON_PATHS: Final = ("attach", "detach", "grow", "wipe", "clean")


@dataclass(frozen=True, slots=True)
class Step:
    """A change that can be repeated and, mostly, undone. `actions` has what is not a mapper's.

    Attributes:
        verb: create (without `table`, only the device), load, suspend, resume, remove; or one of
            `actions` and `mirror_swap`.
        device: the name of a mapped device; for ON_PATHS, the path of a device or file.
        table: what is loaded, as text. It names devices by paths that outlive a reboot; a mapped
            one by `Mapper.path`.
        before: the table that the device has before the step, as the engine printed it. For the
            resume of a device that had one already, it tells whether the swap has happened, and
            undo loads it.
        health: for another table under a mirror, the letters of its legs when that was planned.
        size: of what is wiped, or of a file that grows; in sectors.
        joined: nothing is written to disk between the step before and this one: a file system may
            be frozen there, perhaps the one with the journal on it.
        final: once this is done, the workflow cannot be undone.
    """

    verb: str
    device: str
    table: str = ""
    before: str = ""
    health: str = ""
    size: int = 0
    joined: bool = False
    final: bool = False

    def check(self) -> None:
        """Raise ValueError or UsageError for what no workflow can have planned."""
        if self.verb not in (*ON_DEVICES, *ON_PATHS):
            raise ValueError(f"no step {self.verb!a}")
        if not 0 <= self.size < 1 << 63:
            raise ValueError(f"{self.size} is no number of sectors")
        Table.read(self.table)
        Table.read(self.before)
        if self.verb in ON_DEVICES:
            check_name(self.device)
        elif not self.device:
            raise ValueError("a step is about nothing")
