"""What a disk's write cache holds back: of each block all that was written since the last flush."""

from __future__ import annotations

import random
from collections.abc import Iterable

Blocks = dict[int, bytes]
"""The content of blocks by their numbers."""


class HeldWrites:
    """Writes in the order of their numbers, from 1 on, in blocks of `block_size` bytes.

    Attributes:
        bytes: how much is held.
        number: that of the last write.
    """

    def __init__(self, block_size: int) -> None:
        self.bytes = 0
        self.number = 0
        self._block_size = block_size
        self._versions: dict[int, list[tuple[int, bytes]]] = {}

    def add(self, first: int, data: bytes) -> int:
        """Hold a write back; return its number."""
        self.number += 1
        size = self._block_size
        for block, at in enumerate(range(0, len(data), size), first):
            self._versions.setdefault(block, []).append((self.number, data[at : at + size]))
        self.bytes += len(data)
        return self.number

    def over(self, blocks: range) -> Blocks:
        """Return what was last written to those of these blocks that are held."""
        versions = self._versions
        return {block: versions[block][-1][1] for block in blocks if block in versions}

    def newest(self, upto: int) -> Blocks:
        """Return of every block that is held what was last written to it up to a number."""
        found: Blocks = {}
        for block, versions in self._versions.items():
            for number, data in reversed(versions):
                if number <= upto:
                    found[block] = data
                    break
        return found

    def written_by(self, number: int, blocks: range) -> Blocks:
        """Return what is still held of one write, which was to these blocks."""
        found = ((block, dict(self._versions.get(block, ()))) for block in blocks)
        return {block: old[number] for block, old in found if number in old}

    def settle(self, blocks: Iterable[int], upto: int) -> None:
        """Forget of these blocks what was written up to a number: it is durable, or overwritten."""
        for block in blocks:
            versions = self._versions.pop(block)
            left = [one for one in versions if one[0] > upto]
            self.bytes -= (len(versions) - len(left)) * self._block_size
            if left:
                self._versions[block] = left

    def settle_range(self, blocks: range, upto: int) -> None:
        """Forget the same of a range, which may be far larger than all that is held."""
        if len(blocks) < len(self._versions):
            self.settle([one for one in blocks if one in self._versions], upto)
        else:
            self.settle([one for one in self._versions if one in blocks], upto)

    def clear(self) -> None:
        self._versions.clear()
        self.bytes = 0

    def by_write(self) -> dict[int, Blocks]:
        """Return what is held by the number of the write, each in the order of its blocks."""
        found: dict[int, Blocks] = {}
        for block in sorted(self._versions):
            for number, data in self._versions[block]:
                found.setdefault(number, {})[block] = data
        return dict(sorted(found.items()))

    def survivors(self, seed: int | None) -> list[Blocks]:
        """Return what a power cut leaves of each write: all, nothing, or some blocks of it.

        One seed and one history have one outcome. None: nothing is left of any.
        """
        if seed is None:
            return []
        rng = random.Random(seed)
        fate = rng.choice(("lose", "keep", "writes", "blocks"))
        left = []
        for blocks in self.by_write().values():
            if fate == "keep" or (fate == "writes" and rng.random() < 0.5):
                left.append(blocks)
            elif fate == "blocks":
                left.append({block: data for block, data in blocks.items() if rng.random() < 0.5})
        return left


def runs(blocks: Iterable[int], most: int) -> list[range]:
    """Return runs of neighbours among blocks in order, of `most` blocks at most."""
    found: list[range] = []
    for block in blocks:
        if found and found[-1].stop == block and len(found[-1]) < most:
            found[-1] = range(found[-1].start, block + 1)
        else:
            found.append(range(block, block + 1))
    return found
