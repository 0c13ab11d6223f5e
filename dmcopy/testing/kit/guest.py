"""Tests in a guest: as on the host, with real disks where a test names one or cuts the power."""

from __future__ import annotations

import os
from pathlib import Path

from dmcopy.block import BlockDevice
from dmcopy.block.loop import attach
from dmcopy.ledger import Ledger
from dmcopy.testing.kit.environment import LackingError
from dmcopy.testing.kit.host import ThisHost
from dmcopy.units import SECTOR_SHIFT, format_bytes


class InGuest(ThisHost):
    """See `Environment`. `phase`: how many power cuts the test has behind it.

    With `volatile` all disks are real ones of the guest, which the host takes the power of, the
    smallest that is large enough each; a loop device over it has the size and the blocks that were
    asked for. In a later phase they are as the power cut left them.
    """

    label = "vm"

    def __init__(self, ledger: Ledger | None = None, *, volatile: bool, phase: int) -> None:
        super().__init__(ledger, volatile=False)
        self._lasting = volatile
        self._phase = phase
        self._taken: set[str] = set()
        self._whole: set[str] = set()

    def make_disk(self, file: Path, block_size: int, seed: int | None = None) -> str:
        if seed is not None:
            if self._lasting:
                raise LackingError("no disk that may have troubles outlasts a power cut here")
            return super().make_disk(file, block_size, seed)
        size = file.stat().st_size
        node = self._attached(file.name, size)
        if not node:
            if self._lasting:
                raise LackingError(
                    f"no disk of {format_bytes(size)} is left that outlasts a power cut: give the "
                    "guest another, --vm-disk SIZE,serial=NAME"
                )
            return super().make_disk(file, block_size)
        self._taken.add(node)
        with BlockDevice.open(node, write=not self._phase) as disk:
            whole = (disk.size_bytes, disk.logical_block_size) == (size, block_size)
            if not self._phase:
                disk.zero_out(0, size >> SECTOR_SHIFT)
        if whole:
            self._whole.add(node)
            return node
        loop = attach(node, sector_size=block_size, size=size >> SECTOR_SHIFT, ledger=self.ledger)
        self._loops[loop.path] = loop
        return loop.path

    def drop_disk(self, word: str) -> None:
        if word in self._whole:
            self._whole.remove(word)
        else:
            super().drop_disk(word)

    def is_disk(self, word: str) -> bool:
        return word in self._whole or super().is_disk(word)

    def _attached(self, serial: str, size: int) -> str:
        """Return the node of the guest's disk that a test is to have, "" for none."""
        disks = {name: _node(name) for name in os.environ.get("DMCOPY_DISKS", "").split()}
        if serial in disks:
            return disks[serial]
        if not self._lasting:
            return ""
        sizes = {node: _size(node) for node in disks.values() if node not in self._taken}
        fit = [(found, node) for node, found in sizes.items() if found >= size]
        return min(fit)[1] if fit else ""


def _node(serial: str) -> str:
    return os.path.realpath(f"/dev/disk/by-id/virtio-{serial}")


def _size(node: str) -> int:
    return int(Path("/sys/class/block", os.path.basename(node), "size").read_text()) << SECTOR_SHIFT
