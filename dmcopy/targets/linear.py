"""linear: the same sectors of another device (drivers/md/dm-linear.c)."""

from __future__ import annotations

from typing import ClassVar

from dmcopy import table as lines
from dmcopy.table import TableLine
from dmcopy.targets.base import REMAPPED, Bio, Host, Map, Target, register


@register
class Linear(Target):
    """`linear <device> <offset>`."""

    value: lines.Linear
    name: ClassVar[str] = "linear"
    version: ClassVar = (1, 4, 0)
    flush_bios = 1
    discard_bios = 1

    def __init__(self, line: TableLine, host: Host) -> None:
        super().__init__(line, host)
        self._device = host.open(self.value.device)
        self._shift = self.value.offset - self.begin
        host.use(self._device, self.value.offset, self.length)

    def map(self, bio: Bio) -> Map:
        """Move the bio to the device below."""
        bio.device = self._device
        bio.sector += self._shift
        return REMAPPED
