"""The pages that a client sets aside: a hard bound on the memory that its data uses.

A piece of work takes as many as it needs, all of them or none, and gives them back when it is done.
There are never more than `num_pages`: when too few are free, the work waits. (The kernel's reserve,
dm-kcopyd.c, is a floor instead: it asks the system for a page first and goes to the reserve only
when there is none. This pool is the kernel under memory pressure.)

Pages that lie side by side go out together, so that most requests have one extent. A pool that fell
to pieces is put together again when nothing in it is long enough, and a request is served from
several extents when even that does not help.
"""

from __future__ import annotations

from dmcopy.errors import UsageError
from dmcopy.io.request import Extent, Memory
from dmcopy.units import PAGE_SIZE

Extents = tuple[Extent, ...]


class PagePool:
    """`num_pages` pages of 4096 bytes, allocated once. Raises UsageError for less than one page."""

    def __init__(self, num_pages: int) -> None:
        if num_pages < 1:
            raise UsageError(f"a client needs at least one page, not {num_pages}")
        self.total = num_pages
        self.memory = Memory(num_pages)
        self._free = self.memory.size_bytes
        # Free runs by their length in bytes; the last one given back goes out first, still warm.
        self._runs: dict[int, list[Extents]] = {self._free: [((0, self._free),)]}

    @property
    def free(self) -> int:
        return self._free // PAGE_SIZE

    def take(self, size: int) -> Extents | None:
        """Take pages for `size` bytes; nothing is taken, and None returned, when there are too few.

        The extents are whole pages, so they may be longer than `size`.
        """
        size += -size % PAGE_SIZE
        if size > self._free:
            return None
        self._free -= size
        runs = self._runs.get(size)
        return runs.pop() if runs else self._cut(size)

    def give(self, extents: Extents) -> None:
        """Put back what `take` returned."""
        if len(extents) == 1:  # nearly always
            size = extents[0][1]
            self._free += size
            if size in self._runs:
                self._runs[size].append(extents)
            else:
                self._runs[size] = [extents]
            return
        for extent in extents:
            size = extent[1]
            self._free += size
            if size in self._runs:
                self._runs[size].append((extent,))
            else:
                self._runs[size] = [(extent,)]

    def close(self) -> None:
        """Give the memory back to the system. Every page must be back."""
        assert self.free == self.total, f"{self.total - self.free} pages are still in use"
        self.memory.close()

    def _keep(self, start: int, length: int) -> None:
        self._runs.setdefault(length, []).append(((start, length),))

    def _cut(self, length: int) -> Extents:
        """Take `length` bytes off the shortest run that is long enough; the pool has that much."""
        enough = self._shortest(length)
        if enough is None:
            self._join()
            enough = self._shortest(length)
        if enough is None:
            return self._gather(length)
        ((start, whole),) = self._runs[enough].pop()
        if whole > length:
            self._keep(start + length, whole - length)
        return ((start, length),)

    def _shortest(self, length: int) -> int | None:
        return min(
            (size for size, runs in self._runs.items() if size >= length and runs), default=None
        )

    def _join(self) -> None:
        """Put neighbouring runs together."""
        extents = sorted(run[0] for runs in self._runs.values() for run in runs)
        self._runs = {}
        joined: list[Extent] = []
        for start, length in extents:
            if joined and sum(joined[-1]) == start:
                joined[-1] = (joined[-1][0], joined[-1][1] + length)
            else:
                joined.append((start, length))
        for extent in joined:
            self._keep(*extent)

    def _gather(self, length: int) -> Extents:
        """Take `length` bytes from several runs, the longest first."""
        taken: list[Extent] = []
        for size in sorted((size for size, runs in self._runs.items() if runs), reverse=True):
            while length and self._runs[size]:
                ((start, whole),) = self._runs[size].pop()
                used = min(whole, length)
                taken.append((start, used))
                length -= used
                if used < whole:
                    self._keep(start + used, whole - used)
        return tuple(taken)
