"""What waits in a client's queue: a small job, which is its own request, or a slice of another."""

from __future__ import annotations

from dmcopy.io.request import CopyIo, Extent


class QueuedCopy(CopyIo):
    """A request with its place in the queue.

    `pages` is what it took from the pool: `extents`, rounded up to whole pages. `is_plain`: one
    read, then the writes, with nothing to look at in between. `zeroes`: it reads nothing, and needs
    no pages. `alone`: not to be merged with a neighbour. `slept`: how often the throttle made it
    wait.
    """

    pages: tuple[Extent, ...] = ()
    extents: tuple[Extent, ...] = ()
    is_plain = True
    zeroes = False
    alone = False
    slept = 0

    def is_followed_by(self, other: QueuedCopy) -> bool:
        """Return whether the two may go out as one: `other` begins where this ends, both sides."""
        device, sector, count = self.source
        next_device, next_sector, _ = other.source
        if next_sector != sector + count or next_device is not device:
            return False
        if self.alone or other.alone or len(self.dests) != 1 or len(other.dests) != 1:
            return False
        device, sector, count = self.dests[0]
        next_device, next_sector, _ = other.dests[0]
        return next_sector == sector + count and next_device is device
