"""Bios under way to chunks that an exception must not overtake (drivers/md/dm-snap.c).

A snapshot's read of a chunk that is still on the origin is tracked, so that the origin's chunk is
not written before the read has ended; so is a write to a chunk that a merge is about to copy.
"""

from __future__ import annotations

from collections.abc import Callable

from dmcopy.targets.base import Bio


class TrackedChunks:
    """Counts the bios of each chunk; `bio.data` is the chunk of a bio that is counted."""

    def __init__(self) -> None:
        self._count: dict[int, int] = {}
        self._waiters: dict[int, list[Callable[[], object]]] = {}

    def __contains__(self, chunk: int) -> bool:
        return chunk in self._count

    def of(self, chunks: set[int]) -> set[int]:
        """Return those of `chunks` that are counted."""
        return chunks & self._count.keys()

    def add(self, bio: Bio, chunk: int) -> None:
        """Count a bio until `ended`."""
        bio.data = chunk
        self._count[chunk] = self._count.get(chunk, 0) + 1

    def ended(self, chunk: int) -> None:
        """Forget a bio of `chunk`; with the last one, call what waits for it to be quiet."""
        count = self._count[chunk] - 1
        if count:
            self._count[chunk] = count
            return
        del self._count[chunk]
        for notify in self._waiters.pop(chunk, ()):
            notify()

    def when_quiet(self, chunk: int, notify: Callable[[], object]) -> None:
        """Call `notify` when no bio of a chunk is under way: now, if none is."""
        if chunk in self._count:
            self._waiters.setdefault(chunk, []).append(notify)
        else:
            notify()
