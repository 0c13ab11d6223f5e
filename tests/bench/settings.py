"""What one bench run was asked for, and what it may share between tables."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench import disks
from tests.bench.disks import Disks

PLACES = ("loops", "files")


@dataclass(frozen=True, slots=True)
class Settings:
    """One bench run: `scratch` holds small files, `ring` is the compiled C limit, if any."""

    rounds: int
    size: int
    directory: Path
    scratch: Path
    places: tuple[str, ...] = PLACES
    engines: tuple[str, ...] = ()
    ring: Path | None = None
    quick: bool = False

    @contextlib.contextmanager
    def disks(self, place: str, size: int, dests: int) -> Iterator[Disks]:
        """Make the disks of one place."""
        if place == "loops":
            with disks.loops(size, dests) as made:
                yield made
        else:
            with disks.files(self.directory, size, dests) as made:
                yield made
